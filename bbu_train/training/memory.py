"""The GPU memory of a run, predicted before it trains, for each layout that the config allows.

    layouts = allowed_layouts(inputs, cfg.engine.gradient_checkpointing, cfg.engine.num_micro_batches, num_ranks)
    for candidate in plan_memory(model, optimizer, average, inputs, layouts, execution, num_ranks, evaluates):
        if candidate.prediction.fits(available_bytes):
            break
    candidate.training.visits, candidate.evaluation.visits   # the micro-batches to encode, run once and discard
    print(candidate.prediction.table())

Model and optimizer may be on the meta device, so this also answers `--check` and a sweep's preflight. The formulas are
in `memory_phases` (phases of a run), `model.activations` and `head.activations`; the layouts in `layout.candidates`;
the micro-batches in `micro_batches`. What would fit if nothing does is in `what_fits`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.ops.activations import Count, Execution, MicroBatchSizes
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.training import layout, memory_phases, micro_batches
from bbu_train.training.layout import Layout
from bbu_train.training.memory_phases import Resident
from bbu_train.training.micro_batches import LargestMicroBatch
from bbu_train.training.setup import RunInputs

GIB = 2**30
MARGIN = 0.05
"""The share of the available memory that a prediction must leave free, for its error and the allocator's gaps.

On an H200 a step that needs 135 of 139 GiB by prediction did not fit.
"""


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes that a process needs.

    resident     what stays, and all gradients
    activations  of the largest micro-batch, kept until its backward pass
    transient    the most that its forward and backward pass need beside them
    training     the peak of forward, backward and update, with all that is there at the time
    evaluation   the peak of evaluation, likewise
    load         the peak while weights are loaded
    """

    resident: Resident
    activations: int
    transient: int
    training: int
    evaluation: int
    load: int

    @property
    def peak(self) -> int:
        return max(self.training, self.evaluation, self.load)

    def fits(self, available_bytes: int) -> bool:
        return self.peak <= (1 - MARGIN) * available_bytes

    def rows(self) -> dict[str, int]:
        """Return the bytes of each part, then the peaks. Gradients come as activations go, so the parts overlap."""
        return {
            "weights": self.resident.weights,
            "gradients": self.resident.gradients,
            "optimizer": self.resident.optimizer,
            "average": self.resident.average,
            "update": self.resident.scratch,
            "teacher cache": self.resident.teacher_cache,
            "activations": self.activations,
            "largest transient": self.transient,
            "training, peak": self.training,
            "evaluation, peak": self.evaluation,
            "loading, peak": self.load,
        }

    def table(self) -> str:
        return "\n".join(f"{name:17} {num_bytes / GIB:8.2f} GiB" for name, num_bytes in self.rows().items())


@dataclass(frozen=True)
class Candidate:
    """A layout, the micro-batches of training and of evaluation that need most memory in it, and what they need.

    `evaluation` is None for a run that never evaluates.
    """

    layout: Layout
    training: LargestMicroBatch
    evaluation: LargestMicroBatch | None
    prediction: MemoryPrediction


def allowed_layouts(
    inputs: RunInputs, gradient_checkpointing: str, num_micro_batches: int | str, num_ranks: int
) -> list[Layout]:
    """Return the layouts that the config allows for this plan, the fastest first; see `layout.candidates`."""
    max_samples = micro_batches.most_samples(inputs.plan.starting_at(0), num_ranks)
    return layout.candidates(gradient_checkpointing, num_micro_batches, max_samples)


def plan_memory(
    model: GroundingModel,
    optimizer: MixedAdamW,
    average: Any,
    inputs: RunInputs,
    layouts: Iterable[Layout],
    execution: Execution,
    num_ranks: int,
    evaluates: bool,
) -> Iterator[Candidate]:
    """Yield the prediction for each layout, in their order. Each layout is computed when it is consumed.

    All steps of the run, all micro-batches and all ranks are looked at. `average` is the choice of conf/average, with
    its `averages` on the model's device. The checkpointing of `execution` is replaced by the layout's. `evaluates` is
    whether the run ever evaluates. A run without steps needs no layout, so nothing is yielded.
    """
    stays = memory_phases.resident(model, optimizer, average)

    def score(evaluated: Callable[..., Count], holds_gradients: bool) -> Callable[[MicroBatchSizes], Count]:
        return lambda sizes: evaluated(model, stays, sizes, execution, holds_gradients)

    evaluation = micro_batches.find_largest(
        inputs.evaluation_steps if evaluates else [],
        inputs.validation,
        inputs.collator,
        1,
        score(memory_phases.evaluation_bytes, num_ranks > 1),
    )
    for each in layouts:
        execution = replace(execution, gradient_checkpointing=each.gradient_checkpointing)
        holds_gradients = num_ranks > 1 or each.num_micro_batches > 1
        training = micro_batches.find_largest(
            inputs.plan.starting_at(0),
            inputs.train,
            inputs.collator,
            num_ranks * each.num_micro_batches,
            score(memory_phases.backward_bytes, holds_gradients),
        )
        if training is None:
            return
        peak = 0 if evaluation is None else evaluation.score
        prediction = predict(model, stays, training.sizes, execution, holds_gradients, peak)
        yield Candidate(each, training, evaluation, prediction)


def predict(
    model: GroundingModel,
    stays: Resident,
    sizes: MicroBatchSizes,
    execution: Execution,
    holds_gradients: bool,
    evaluation: int,
) -> MemoryPrediction:
    """Return the prediction for a micro-batch of these sizes, beside the peak of `evaluation`."""
    saved, transients = zip(*memory_phases.activation_parts(model, sizes, execution).values(), strict=True)
    return MemoryPrediction(
        resident=stays,
        activations=int(sum(saved)),
        transient=int(max(transients)),
        training=int(memory_phases.backward_bytes(model, stays, sizes, execution, holds_gradients)),
        evaluation=evaluation,
        load=memory_phases.load_bytes(model),
    )
