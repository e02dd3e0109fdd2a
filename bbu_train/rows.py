"""What a row of metrics.jsonl holds for a training step."""

import resource
import sys
from collections.abc import Sequence

import torch

from bbu_train.types import Batch, Counts, Losses


def losses(criterion, sums: Losses, counts: Counts) -> dict[str, float]:
    """Each mean and the total under "loss/..."."""
    means = criterion.means(sums, counts) | {"total": criterion.objective(sums, counts)}
    values = torch.stack(list(means.values())).tolist()
    return dict(zip((f"loss/{name}" for name in means), values, strict=True))


def under(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def resources(seconds: float, waited: float, batches: Sequence[Batch], device: torch.device) -> dict[str, float]:
    """Seconds of this step, of them waiting for data, this rank's tokens without padding, and its memory so far."""
    num_tokens = sum(batch.num_tokens for batch in batches)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        # Linux counts KiB, macOS bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "time/step_seconds": seconds,
        "time/data_seconds": waited,
        "time/tokens_per_second": num_tokens / seconds,
        "memory/peak_gib": peak / 2**30,
    }


def short(row: dict[str, float]) -> str:
    """The losses of a row in little room, for the progress bar; auxiliary ones are in the total."""
    shown = {"loss/total": "total", "loss/teacher_lm": "teacher", "loss/student_lm": "student", "loss/bbox_l1": "l1"}
    shown |= {"loss/bbox_giou": "giou", "loss/objectness": "obj", "loss/caption": "cap"}
    return " ".join(f"{word} {row[name]:.3g}" for name, word in shown.items() if name in row)
