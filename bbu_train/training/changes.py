"""What the overrides of a run that does not fit would change of its memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from bbu_train.average.none import NoAverage
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.ops.activations import Execution, MicroBatchSizes
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.optimizer.muon import Muon
from bbu_train.training import memory_phases
from bbu_train.training.memory import Candidate, predict
from bbu_train.training.outline import Outline
from bbu_train.training.setup import RunInputs

HALVINGS = (2, 4)  # divisors of the largest micro-batch's mean picture area that are tried as model.max_pixels


@dataclass(frozen=True)
class Change:
    """What an override changes of a run.

    frozen        parameters that are no longer trained
    has_head      whether there still is a head
    has_average   whether there still is an average
    precision     the new engine.precision, or None
    max_pixels    the new largest area of a picture, or None
    """

    override: str
    frozen: tuple[nn.Parameter, ...] = ()
    has_head: bool = True
    has_average: bool = True
    precision: str | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Run:
    """A run whose layouts are all too large: `least` is the one that needs least memory.

    `published` builds the outline of the same run with the smallest published model.
    """

    model: GroundingModel
    optimizer: MixedAdamW
    average: Any
    inputs: RunInputs
    least: Candidate
    execution: Execution
    num_ranks: int
    published: Callable[[], Outline]


def possible_changes(run: Run) -> Iterator[Change]:
    """Yield every choice that exists for this run."""
    if run.execution.precision == "bf16" and not isinstance(run.optimizer, Muon):
        yield Change("engine.precision=pure_bf16", precision="pure_bf16")
    if run.average.averages:
        yield Change("average=none", has_average=False)
    groups = parameters_by_group(run.optimizer)
    for name in ("vision", "llm"):
        if name in groups and len(groups) > 1:
            yield Change(f"optimizer.groups.{name}.lr=0", frozen=tuple(groups[name]))
    if run.model.head is not None:
        yield Change("head=none loss=language", has_head=False)
    picture_format, sizes = run.inputs.collator.picture_format, run.least.training.sizes
    mean_area = sizes.merged / sizes.pictures * (picture_format.patch_size * picture_format.merge_size) ** 2
    for divisor in HALVINGS:
        if (area := int(mean_area / divisor)) >= picture_format.min_pixels:
            yield Change(f"model.max_pixels={area}", max_pixels=area)


def are_compatible(changes: Sequence[Change]) -> bool:
    """Whether no two changes set the same key."""
    keys = [change.override.split("=")[0] for change in changes]
    return len(set(keys)) == len(keys)


def bytes_after(run: Run, changes: Sequence[Change]) -> int:
    """Return the bytes that the run needs after all `changes`, for the micro-batches that are its largest now."""
    execution = replace(run.execution, gradient_checkpointing=run.least.layout.gradient_checkpointing)
    sizes = [run.least.training.sizes, *([run.least.evaluation.sizes] if run.least.evaluation else [])]
    for change in changes:
        if change.precision is not None:
            execution = replace(execution, precision=change.precision)
        if change.max_pixels is not None:
            sizes = [_with_smaller_pictures(run, each, change.max_pixels) for each in sizes]
    frozen = [parameter for change in changes for parameter in change.frozen]
    has_head = all(change.has_head for change in changes)
    with _changed(run.model, frozen, has_head):
        optimizer = _optimizer_of(run, execution.precision)
        average = run.average if all(change.has_average for change in changes) else NoAverage(run.model, optimizer)
        stays = memory_phases.resident(run.model, optimizer, average)
        holds_gradients = run.num_ranks > 1 or run.least.layout.num_micro_batches > 1
        training, *evaluation = sizes
        peaks = (
            int(memory_phases.evaluation_bytes(run.model, stays, each, execution, run.num_ranks > 1))
            for each in evaluation
        )
        return predict(run.model, stays, training, execution, holds_gradients, max(peaks, default=0)).peak


@contextmanager
def _changed(model: GroundingModel, frozen: Sequence[nn.Parameter], has_head: bool) -> Iterator[None]:
    """Freeze parameters and take the head away, for as long as the context lasts."""
    head, trained = model.head, [parameter for parameter in frozen if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    model.head = head if has_head else None
    try:
        yield
    finally:
        model.head = head
        for parameter in trained:
            parameter.requires_grad_(True)


def _optimizer_of(run: Run, precision: str) -> MixedAdamW:
    """Return an optimizer without state for what the model still trains, in this precision."""
    trained = {parameter for parameter in run.model.parameters() if parameter.requires_grad}
    groups = [
        group | {"params": [parameter for parameter in group["params"] if parameter in trained]}
        for group in run.optimizer.param_groups
    ]
    settings = {name: run.optimizer.defaults[name] for name in ("betas", "eps")}
    has_masters = run.optimizer.has_masters and precision != "pure_bf16"
    return type(run.optimizer)([group for group in groups if group["params"]], has_masters=has_masters, **settings)


def _with_smaller_pictures(run: Run, sizes: MicroBatchSizes, max_pixels: int) -> MicroBatchSizes:
    """Return the sizes when no picture has more than `max_pixels`."""
    picture_format = run.inputs.collator.picture_format
    patches = max_pixels // picture_format.patch_size**2
    tokens = patches // picture_format.merge_size**2
    merged = min(sizes.merged, sizes.pictures * tokens)
    num_encoded = sizes.samples if picture_format.teachers_apart else sizes.pictures
    return replace(
        sizes,
        patches=min(sizes.patches, num_encoded * patches),
        other_patches=min(sizes.other_patches, patches),
        merged=merged,
        positions=sizes.positions - (sizes.merged - merged),
        memory_image=min(sizes.memory_image, tokens),
    )
