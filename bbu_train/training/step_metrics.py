"""What a row of metrics.jsonl holds for a training step."""

import resource
import sys

import torch

from bbu_train.runtime import distributed
from bbu_train.types.batch import Counts
from bbu_train.types.outputs import Losses


def losses(criterion, sums: Losses, counts: Counts) -> dict[str, float]:
    """Each mean and the total under "loss/..."."""
    means = criterion.means(sums, counts) | {"total": criterion.objective(sums, counts)}
    values = torch.stack(list(means.values())).tolist()
    return dict(zip((f"loss/{name}" for name in means), values, strict=True))


def under(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def times(
    seconds: float, waited: float, num_tokens: int, num_slots: int, num_operations: int, peak_matmul_rate: int
) -> dict[str, float]:
    """Of one step: its seconds, of them waiting for data, and over all ranks the tokens, the slots of rows, the useful
    operations, and how many a second the devices can do at best (0: not known, so no share).

    Packing efficiency is the share of slots that hold a token and not padding.
    """
    row = {
        "time/step_seconds": seconds,
        "time/data_seconds": waited,
        "time/tokens_per_second": num_tokens / seconds,
        "time/packing_efficiency": num_tokens / num_slots,
        "time/model_tflops": num_operations / seconds / 1e12,
    }
    return row | {"time/useful_share": num_operations / seconds / peak_matmul_rate} if peak_matmul_rate else row


def memory(device: torch.device) -> dict[str, float]:
    """GiB of the fullest rank and, if there are several, of each of them. Every rank calls this.

    On a GPU allocated and reserved now and allocated at most, on a CPU resident at most.
    """
    sizes = _memory_of(device)
    by_rank = distributed.gather_integers(list(sizes.values()))
    row = {f"memory/{name}_gib": max(its) / 2**30 for name, its in zip(sizes, zip(*by_rank, strict=True), strict=True)}
    if len(by_rank) > 1:
        for rank, its in enumerate(by_rank):
            row |= {f"memory/rank{rank}/{name}_gib": size / 2**30 for name, size in zip(sizes, its, strict=True)}
    return row


def _memory_of(device: torch.device) -> dict[str, int]:
    """Bytes of this process."""
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": torch.cuda.max_memory_allocated(device),
        }
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB, macOS bytes
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def short(row: dict[str, float]) -> str:
    """The losses of a row in little room, for the progress bar; auxiliary ones are in the total."""
    shown = {"loss/total": "total", "loss/teacher_lm": "teacher", "loss/student_lm": "student", "loss/bbox_l1": "l1"}
    shown |= {"loss/bbox_giou": "giou", "loss/objectness": "obj", "loss/caption": "cap"}
    return " ".join(f"{word} {row[name]:.3g}" for name, word in shown.items() if name in row)
