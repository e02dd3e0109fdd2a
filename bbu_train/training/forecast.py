"""All that is known of a run before it trains: its plan, parameters, memory and arithmetic. No weight is loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from bbu_train.errors import InputError
from bbu_train.runtime.screen import Section
from bbu_train.training import auto, first_screen, fit, initial_weights
from bbu_train.training.auto import Setting
from bbu_train.training.machine import Machine
from bbu_train.training.memory import GIB
from bbu_train.training.setup import RunData, RunInputs, build, prepare

NUM_STEPS = 4  # first steps of the plan, whose pictures are read and whose operations are averaged


@dataclass(frozen=True)
class Forecast:
    """What a run will be on a machine. `planned` is None on a CPU, and where the GPU's memory is not known.

    `notes_on_init` are those of `initial_weights.check`.
    """

    machine: Machine
    settings: dict[str, Setting]
    inputs: RunInputs
    prediction: fit.LayoutPredictions
    planned: fit.LayoutPlan | None
    notes_on_init: list[str]

    def flops_per_step(self) -> float:
        """Return the operations of a training step of all ranks together: a mean over the first steps."""
        return first_screen.mean_flops(self.inputs, self.prediction.outline.model, NUM_STEPS)

    def num_bytes(self) -> int:
        """Return the bytes that each process needs in the layout that is planned, or that needs least."""
        candidate = self.planned.candidates[0] if self.planned else self.prediction.least
        return candidate.prediction.peak

    def sections(self, cfg: DictConfig) -> list[Section]:
        """Return what a user wants to know. `cfg` is that of the run."""
        outline = self.prediction.outline
        memory = [
            f"at least {self.num_bytes() / GIB:.3g} GiB for each process by prediction",
            "not planned on a CPU; --check=H100 plans it for that GPU, --check=24 for one of 24 GiB",
        ]
        if self.planned is not None:
            memory = [*self._memory_lines(self.planned)]
        return [
            Section("data", self.inputs.data_lines),
            first_screen.model_section(cfg, outline.model, outline.optimizer),
            *first_screen.parts_sections(cfg),
            auto.section(self.machine, self.settings),
            first_screen.plan_section(cfg, self.inputs, build(cfg.stopping).rule),
            Section("memory", memory),
            Section("unusual", [*self.notes_on_init, *first_screen.changed_lines(cfg)]),
        ]

    def _memory_lines(self, planned: fit.LayoutPlan) -> Iterator[str]:
        taken = planned.candidates[0]
        yield f"on {self.machine.name}: {planned.available_bytes / GIB:.1f} GiB are available to this process"
        for reason in planned.left_out:
            yield f"{reason}: too much"
        peak = f"{taken.prediction.peak / GIB:.1f} GiB"
        yield f"{taken.layout} needs {peak} (predicted; measured before the first step), of which:"
        for line in taken.prediction.table().splitlines():
            yield f"  {line}"


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
    notes = [] if environment else initial_weights.check(cfg, prediction.outline.model)  # a run that began needs none
    planned = fit.plan(prediction, machine.available_bytes, num_ranks) if machine.available_bytes else None
    settings |= fit.settings_of(cfg, *fit.first_layout(cfg, planned))
    return Forecast(machine, settings, inputs, prediction, planned, notes)
