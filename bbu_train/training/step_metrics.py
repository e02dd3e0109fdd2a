"""The metrics of a training step: one row of metrics.jsonl."""

import resource
import sys
from typing import NamedTuple

import torch

from bbu_train.ops import flops
from bbu_train.optimizer.groups import learning_rates
from bbu_train.runtime import distributed
from bbu_train.training.protocols import Criterion
from bbu_train.training.step import StepResult, StepTotals
from bbu_train.types.batch import Counts
from bbu_train.types.outputs import Losses


class PeakFlops(NamedTuple):
    """The most operations a second that the devices of all ranks reach together; 0 where it is not known.

    `data_sheet` is the dense bfloat16 rate that the maker states, `matmul` that of a large matrix product, measured in
    the precision of the run.
    """

    data_sheet: int
    matmul: int


def peak_flops(device: torch.device, precision: str) -> PeakFlops:
    """Look up and measure the device of each rank. All ranks call this."""
    data_sheet, matmul = flops.peak_bf16_flops(device), flops.measured_matmul_flops(device, precision)
    sums = distributed.sum_integers([data_sheet, matmul, data_sheet == 0])
    return PeakFlops(0 if sums[2] else sums[0], sums[1])


def training_row(
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    result: StepResult,
    totals: StepTotals,
    device: torch.device,
) -> dict[str, float]:
    """Return the losses, learning rates, gradient norms and memory of a step. All ranks call this."""
    row = loss_metrics(criterion, result.loss_sums(), totals.counts)
    row |= prefixed("lr", learning_rates(optimizer)) | prefixed("grad_norm", result.grad_norms)
    return row | memory_metrics(device)


def loss_metrics(criterion: Criterion, sums: Losses, counts: Counts) -> dict[str, float]:
    """Return the mean of each loss and their weighted total, as "loss/...". The host waits for the device once.

    A loss without anything to average is missing, and so is the total if all are.
    """
    means = criterion.means(sums, counts)
    if not means:
        return {}
    means["total"] = criterion.objective(sums, counts)
    values = torch.stack(list(means.values())).tolist()
    return dict(zip((f"loss/{name}" for name in means), values, strict=True))


def prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def time_metrics(
    seconds: float, data_seconds: float, totals: StepTotals, step_flops: int, peak: PeakFlops
) -> dict[str, float]:
    """Return the speed of a step that took `seconds`, `data_seconds` of them waiting for its batches.

    Rates are over all ranks. `step_flops` counts the operations that the samples need: no padding, no recomputation.
    `time/mfu` (model FLOPs utilisation, Chowdhery et al. 2022) is their rate over the data sheet's, and
    `time/share_of_matmul` over that of a large matrix product. Packing efficiency is the share of positions that hold
    a token rather than padding.
    """
    flops_per_second = step_flops / seconds
    row = {
        "time/step_seconds": seconds,
        "time/data_seconds": data_seconds,
        "time/tokens_per_second": totals.sizes.tokens / seconds,
        "time/packing_efficiency": totals.sizes.tokens / totals.num_positions,
        "time/model_tflops": flops_per_second / 1e12,
    }
    if peak.data_sheet:
        row["time/mfu"] = flops_per_second / peak.data_sheet
    if peak.matmul:
        row["time/share_of_matmul"] = flops_per_second / peak.matmul
    return row


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Return GiB of memory in use: the largest over the ranks and, if there are several, that of each rank.

    On a GPU: memory allocated now, reserved now, and the peak allocated. On a CPU: the peak resident size. All ranks
    call this.
    """
    sizes = _memory_bytes(device)
    by_rank = distributed.gather_integers(list(sizes.values()))
    row = {
        f"memory/{name}_gib": max(values) / 2**30
        for name, values in zip(sizes, zip(*by_rank, strict=True), strict=True)
    }
    if len(by_rank) > 1:
        for rank, values in enumerate(by_rank):
            row |= {f"memory/rank{rank}/{name}_gib": value / 2**30 for name, value in zip(sizes, values, strict=True)}
    return row


def _memory_bytes(device: torch.device) -> dict[str, int]:
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": torch.cuda.max_memory_allocated(device),
        }
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB, macOS bytes
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
