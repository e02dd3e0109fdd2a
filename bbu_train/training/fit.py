"""How a step is laid out so that it fits on the GPU: by prediction, then by a trial of the largest micro-batch.

`predict` and `plan` find the layouts that fit, without a model on the device. `try_out` runs the largest micro-batch of
training and of evaluation once, before the first step, and takes the first layout that fits. The trial also
compiles the model, while no rank waits for another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from omegaconf import DictConfig

from bbu_train.errors import InputError
from bbu_train.ops.activations import Execution
from bbu_train.runs.settings import AUTO, CHECKPOINTING, MICRO_BATCHES
from bbu_train.runtime import distributed, out_of_memory
from bbu_train.training import changes, memory, what_fits
from bbu_train.training.auto import Setting
from bbu_train.training.layout import Layout
from bbu_train.training.memory import GIB, Candidate
from bbu_train.training.outline import Outline, build_outline, smallest_published
from bbu_train.training.protocols import Average, Criterion, Engine
from bbu_train.training.setup import RunInputs
from bbu_train.training.validation import evaluate_on_this_rank
from bbu_train.types.samples import PlannedStep

TRIAL_MARGIN = 0.03
"""The share of the memory that a trial must leave: other lengths leave other gaps in the allocator."""


@dataclass(frozen=True)
class LayoutPredictions:
    """What a run needs in each layout that its config allows.

    applied     the config with the settings of the machine
    outline     the run without weights
    execution   how a micro-batch is computed; the layout decides the checkpointing
    candidates  the layouts, the fastest first; one if the config gives it
    """

    applied: DictConfig
    outline: Outline
    inputs: RunInputs
    execution: Execution
    candidates: Sequence[Candidate]

    @property
    def least(self) -> Candidate:
        """The layout that needs least memory."""
        return min(self.candidates, key=lambda candidate: candidate.prediction.peak)

    def does_not_fit(self, available_bytes: int, num_ranks: int) -> InputError:
        """Return the error that says what would fit."""
        outline = self.outline
        parts = outline.model, outline.optimizer, outline.average, self.inputs
        published = partial(smallest_published, self.applied)
        run = changes.Run(*parts, self.least, self.execution, num_ranks, published)
        return what_fits.does_not_fit(run, available_bytes)


@dataclass(frozen=True)
class LayoutPlan:
    """The layouts to try, in order, and why each faster one was left out. `available_bytes` are for this process."""

    prediction: LayoutPredictions
    candidates: Sequence[Candidate]
    left_out: Sequence[str]
    available_bytes: int
    num_ranks: int


def predict(
    cfg: DictConfig, applied: DictConfig, is_on_gpu: bool, inputs: RunInputs, num_ranks: int
) -> LayoutPredictions:
    """Predict the memory of every layout that `cfg` allows; `applied` is `cfg` with the settings of the machine.

    Raises InputError, or Hydra's InstantiationException from it, for what `build_outline` checks.
    """
    outline = build_outline(applied)
    engine = cfg.engine
    layouts = memory.allowed_layouts(inputs, engine.gradient_checkpointing, engine.num_micro_batches, num_ranks)
    model = applied.model
    execution = Execution(applied.engine.precision, model.compile, model.attention, "none", is_on_gpu)
    parts = outline.model, outline.optimizer, outline.average, inputs
    planned = memory.plan_memory(*parts, layouts, execution, num_ranks, evaluates=cfg.eval_every is not None)
    return LayoutPredictions(applied, outline, inputs, execution, list(planned))


def plan(prediction: LayoutPredictions, available_bytes: int, num_ranks: int) -> LayoutPlan:
    """Leave out the layouts that cannot fit. Raises InputError that says what would fit if none does.

    A layout that the config gives is tried in any case.
    """
    candidates, left_out = [], []
    for candidate in prediction.candidates:
        peak = candidate.prediction.peak
        if peak <= available_bytes or len(prediction.candidates) == 1:
            candidates.append(candidate)
        elif not candidates:
            left_out.append(f"{candidate.layout.short} needs {peak / GIB:.0f} GiB by prediction")
    if len(prediction.candidates) > 1 and not any(each.prediction.fits(available_bytes) for each in candidates):
        raise prediction.does_not_fit(available_bytes, num_ranks)
    return LayoutPlan(prediction, candidates, left_out, available_bytes, num_ranks)


def first_layout(cfg: DictConfig, planned: LayoutPlan | None) -> tuple[Layout, str]:
    """Return the layout to begin with, and the reason for it. Without a plan, a step is kept whole."""
    if planned is not None:
        return planned.candidates[0].layout, "predicted to fit"
    checkpointing, number = cfg.engine.gradient_checkpointing, cfg.engine.num_micro_batches
    whole = Layout("none" if checkpointing == AUTO else checkpointing, 1 if number == AUTO else number)
    return whole, "no GPU's memory limits it"


def settings_of(cfg: DictConfig, taken: Layout, reason: str) -> dict[str, Setting]:
    """Return the two settings of a layout."""
    values = {CHECKPOINTING: taken.gradient_checkpointing, MICRO_BATCHES: taken.num_micro_batches}
    given = {CHECKPOINTING: cfg.engine.gradient_checkpointing, MICRO_BATCHES: cfg.engine.num_micro_batches}
    reasons = {CHECKPOINTING: reason, MICRO_BATCHES: reason if given[CHECKPOINTING] != AUTO else "with it"}
    return {
        key: Setting(given[key], value, reasons[key] if given[key] == AUTO else "given")
        for key, value in values.items()
    }


@dataclass(frozen=True)
class MemoryTrial:
    """What a trial runs. `average` is None if the run evaluates nothing."""

    engine: Engine
    criterion: Criterion
    model: torch.nn.Module
    inputs: RunInputs
    average: Average | None


def try_out(planned: LayoutPlan, trial: MemoryTrial) -> tuple[Layout, str]:
    """Lay the engine out as the first candidate that fits. Return its layout, and the reason for it.

    Weights, optimizer, gradients and generators are as before. Raises InputError if no candidate fits. All ranks call
    this.
    """
    failures = list(planned.left_out)
    for candidate in planned.candidates:
        trial.engine.lay_out(candidate.layout.gradient_checkpointing, candidate.layout.num_micro_batches)
        peak = _peak_bytes(candidate, trial)
        is_last = candidate is planned.candidates[-1]
        if peak is not None and (is_last or peak <= (1 - TRIAL_MARGIN) * planned.available_bytes):
            needed = f"{peak / GIB:.1f} of {planned.available_bytes / GIB:.1f} GiB in a trial"
            return candidate.layout, "; ".join([needed, *failures])
        failures.append(
            f"{candidate.layout.short} {'ran out' if peak is None else f'took {peak / GIB:.1f} GiB'} in a trial"
        )
    if planned.candidates[-1].prediction.fits(planned.available_bytes):
        raise InputError(
            f"The run does not fit into {planned.available_bytes / GIB:.1f} GiB, although less was predicted: "
            f"{'; '.join(failures)}. Lower model.max_pixels or the number of teachers, or take "
            "engine.precision=pure_bf16 or a GPU with more memory."
        )
    raise planned.prediction.does_not_fit(planned.available_bytes, planned.num_ranks)


def _peak_bytes(candidate: Candidate, trial: MemoryTrial) -> int | None:
    """Return the peak over all ranks in the largest micro-batches, or None if a rank ran out of memory."""
    device = trial.engine.device
    torch.cuda.reset_peak_memory_stats(device)
    has_failed = False
    with torch.random.fork_rng([torch.cuda.current_device()]):
        for attempt in (_train, _evaluate):
            has_failed = has_failed or distributed.any_rank(_runs_out_of_memory(partial(attempt, candidate, trial)))
            trial.engine.discard()
    peak = torch.cuda.max_memory_allocated(device)
    out_of_memory.release()
    torch.cuda.reset_peak_memory_stats(device)
    peak = max(number for (number,) in distributed.gather_integers([peak]))
    return None if has_failed else peak


def _runs_out_of_memory(attempt: Callable[[], None]) -> bool:
    """Whether the attempt runs out of memory. Its traceback, which holds activations, is gone when this returns."""
    try:
        attempt()
    except Exception as error:
        if not out_of_memory.is_out_of_memory(error):
            raise
        return True
    return False


def _train(candidate: Candidate, trial: MemoryTrial) -> None:
    """Run forward and backward; with several micro-batches twice, because from the second on all gradients exist."""
    engine, inputs = trial.engine, trial.inputs
    batch = inputs.collator([inputs.train.encode(visit) for visit in candidate.training.visits]).to(engine.device)
    for _ in range(min(2, candidate.layout.num_micro_batches)):
        with engine.accumulate(last=False):
            engine.backward(trial.criterion.objective(engine(batch), batch.counts))


def _evaluate(candidate: Candidate, trial: MemoryTrial) -> None:
    """Evaluate the largest batch, unless the run evaluates nothing."""
    if trial.average is None or candidate.evaluation is None:
        return
    steps: list[PlannedStep] = [(candidate.evaluation.visits,)] * distributed.world_size()
    inputs = replace(trial.inputs, evaluation_steps=steps)
    with trial.average.applied():
        evaluate_on_this_rank(inputs, trial.engine, trial.model, trial.criterion, 0, lambda: None)
