"""All that is known of a run before it trains: its plan, parameters, memory and arithmetic. No weight is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from omegaconf import DictConfig

from bbu_train.collator.sizes import sizes
from bbu_train.errors import InputError
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.training import auto, fit
from bbu_train.training.auto import Setting
from bbu_train.training.machine import Machine
from bbu_train.training.memory import GIB
from bbu_train.training.outline import Outline
from bbu_train.training.setup import RunData, RunInputs, prepare
from bbu_train.types.samples import PlannedStep

NUM_STEPS = 4  # first steps of the plan, whose pictures are read and whose operations are averaged


@dataclass(frozen=True)
class Forecast:
    """What a run will be on a machine. `planned` is None on a CPU, and where the GPU's memory is not known."""

    machine: Machine
    settings: dict[str, Setting]
    inputs: RunInputs
    prediction: fit.LayoutPredictions
    planned: fit.LayoutPlan | None

    def flops_per_step(self) -> float:
        """Return the operations of a training step of all ranks together: a mean over the first NUM_STEPS."""
        inputs = self.inputs
        steps = list(islice(inputs.plan.starting_at(0), NUM_STEPS))
        encoded = [inputs.train.encode(visit) for step in steps for row in step for visit in row]
        model = self.prediction.outline.model
        return model.training_flops(sizes(encoded, inputs.builder.picture_format)) / len(steps)

    def num_bytes(self) -> int:
        """Return the bytes that each process needs in the layout that is planned, or that needs least."""
        candidate = self.planned.candidates[0] if self.planned else self.prediction.least
        return candidate.prediction.peak

    def lines(self) -> Iterator[str]:
        """Yield what a user wants to know, line by line."""
        yield from _plan_lines(self.inputs)
        yield from _group_lines(self.prediction.outline)
        if self.planned is None:
            yield "memory    not planned on a CPU; --check=H100 plans it for that GPU, --check=24 for one of 24 GiB"
        else:
            yield from self._memory_lines(self.planned)
        yield f"settings  {auto.describe(self.machine, self.settings)}"

    def _memory_lines(self, planned: fit.LayoutPlan) -> Iterator[str]:
        taken = planned.candidates[0]
        yield f"memory    on {self.machine.name}: {planned.available_bytes / GIB:.1f} GiB are there for this process"
        for reason in planned.left_out:
            yield f"          {reason}, too much"
        peak = f"{taken.prediction.peak / GIB:.1f} GiB"
        yield f"          {taken.layout} needs {peak} (predicted; a trial decides). Of these:"
        for line in taken.prediction.table().splitlines():
            yield f"            {line}"


def forecast(
    cfg: DictConfig, machine: Machine, num_ranks: int, environment: Mapping[str, Any], loaded: RunData | None = None
) -> Forecast:
    """Check all of a run that can be checked without its weights, and return what is known.

    `environment` is the `environment.json` of the run if it exists, else empty. `loaded` is what `setup.load_data`
    returns for `cfg.data`, for a caller that has it already. Raises InputError, or Hydra's InstantiationException from
    it.
    """
    if cfg.steps == 0:
        raise InputError("steps=0: a run without steps has no plan to check.")
    inputs = prepare(cfg, loaded, num_ranks)
    settings = auto.settings(cfg, machine, environment)
    is_on_gpu = machine.kind == "gpu"
    prediction = fit.predict(cfg, auto.apply(cfg, settings), is_on_gpu, inputs, num_ranks)
    planned = fit.plan(prediction, machine.available_bytes, num_ranks) if machine.available_bytes else None
    settings |= fit.settings_of(cfg, *fit.first_layout(cfg, planned))
    return Forecast(machine, settings, inputs, prediction, planned)


def _plan_lines(inputs: RunInputs) -> Iterator[str]:
    steps = list(inputs.plan.starting_at(0))
    samples, tokens = [_count(step) for step in steps], [_num_tokens(inputs, step) for step in steps]
    num_epochs = sum(samples) / len(inputs.data.train)
    yield (
        f"plan      {len(steps):,} steps: {num_epochs:,.1f} epochs of {len(inputs.data.train):,} samples; a step has "
        f"{_range(samples)} samples and {_range(tokens)} tokens"
    )


def _group_lines(outline: Outline) -> Iterator[str]:
    rates = {group["name"]: group["initial_lr"] for group in outline.optimizer.param_groups}
    groups = parameters_by_group(outline.optimizer)
    for label, (name, parameters) in zip(["groups", *[""] * len(groups)], groups.items(), strict=False):
        yield f"{label:9} {name}: {sum(p.numel() for p in parameters):,} weights at a rate of {rates[name]:g}"
    if frozen := sum(p.numel() for p in outline.model.parameters() if not p.requires_grad):
        yield f"{'':9} frozen: {frozen:,} weights"


def _count(step: PlannedStep) -> int:
    return sum(map(len, step))


def _num_tokens(inputs: RunInputs, step: PlannedStep) -> int:
    return sum(inputs.train.num_tokens(visit) for row in step for visit in row)


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,} (mean {sum(numbers) / len(numbers):,.0f})"
