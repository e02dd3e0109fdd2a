"""What a row of metrics.jsonl holds for a training step."""

import resource
import sys

import torch

from bbu_train.types import Counts, Losses


def losses(criterion, sums: Losses, counts: Counts) -> dict[str, float]:
    """Each mean and the total under "loss/..."."""
    means = criterion.means(sums, counts) | {"total": criterion.objective(sums, counts)}
    values = torch.stack(list(means.values())).tolist()
    return dict(zip((f"loss/{name}" for name in means), values, strict=True))


def under(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def times(seconds: float, waited: float, num_tokens: int, num_slots: int) -> dict[str, float]:
    """Of one step: its seconds, of them waiting for data, and the tokens and the slots of rows over all ranks.

    Packing efficiency is the share of slots that hold a token and not padding.
    """
    return {
        "time/step_seconds": seconds,
        "time/data_seconds": waited,
        "time/tokens_per_second": num_tokens / seconds,
        "time/packing_efficiency": num_tokens / num_slots,
    }


def memory(device: torch.device) -> dict[str, float]:
    """GiB of this process: on a GPU allocated and reserved now and allocated at most, on a CPU resident at most."""
    if device.type == "cuda":
        bytes_of = {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": torch.cuda.max_memory_allocated(device),
        }
    else:
        # Linux counts KiB, macOS bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        bytes_of = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    return {f"memory/{name}_gib": size / 2**30 for name, size in bytes_of.items()}


def short(row: dict[str, float]) -> str:
    """The losses of a row in little room, for the progress bar; auxiliary ones are in the total."""
    shown = {"loss/total": "total", "loss/teacher_lm": "teacher", "loss/student_lm": "student", "loss/bbox_l1": "l1"}
    shown |= {"loss/bbox_giou": "giou", "loss/objectness": "obj", "loss/caption": "cap"}
    return " ".join(f"{word} {row[name]:.3g}" for name, word in shown.items() if name in row)
