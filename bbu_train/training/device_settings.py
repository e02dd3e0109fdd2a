"""What a run takes on its device: the values of `auto`, and the layout of a step before a trial."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from bbu_train.runtime import distributed
from bbu_train.training import auto, fit
from bbu_train.training.auto import Setting
from bbu_train.training.machine import Machine, this_machine
from bbu_train.training.setup import RunInputs


@dataclass(frozen=True)
class DeviceSettings:
    """`applied` is the config with `settings` in the place of "auto"; `planned` is None where no memory is planned."""

    machine: Machine
    settings: dict[str, Setting]
    applied: DictConfig
    planned: fit.LayoutPlan | None


def choose(
    cfg: DictConfig, inputs: RunInputs, device: torch.device, environment: Mapping[str, Any], has_steps: bool
) -> DeviceSettings:
    """Return what all ranks take, and set the threads of this process. All ranks call this together.

    `environment` is that of `auto.settings`. `has_steps` says whether the run has steps left, so that its memory is
    planned on a GPU. Raises InputError if nothing fits.
    """
    machine = this_machine(device)
    settings = distributed.broadcast_from_main(auto.settings(cfg, machine, environment))
    applied = auto.apply(cfg, settings)
    torch.set_num_threads(applied.threads)
    planned = None
    if machine.kind == "gpu" and has_steps:
        prediction = fit.predict(cfg, applied, True, inputs, distributed.world_size())
        available_bytes = distributed.min_over_ranks(machine.available_bytes)
        planned = fit.plan(prediction, available_bytes, distributed.world_size())
    settings |= fit.settings_of(cfg, *fit.first_layout(cfg, planned))
    return DeviceSettings(machine, settings, auto.apply(applied, settings), planned)
