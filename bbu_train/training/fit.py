"""Choose how a step is laid out so that it fits on the device."""

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from bbu_train.runs.settings import AUTO, CHECKPOINTING, MICRO_BATCHES
from bbu_train.training.auto import Machine, Setting


def first_layout(cfg: DictConfig, machine: Machine) -> Mapping[str, Setting]:
    """Return the layout to build the engine with."""
    answers = {MICRO_BATCHES: 1, CHECKPOINTING: "none" if machine.kind == "cpu" else "selective"}
    settings = {}
    for key, value in answers.items():
        given = OmegaConf.select(cfg, key)
        settings[key] = Setting(given, value, "no limit") if given == AUTO else Setting(given, given, "given")
    return settings
