"""`--check` of a single run: what is known of it before it trains, by the code that checks a sweep."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bbu_train.errors import InputError, Preempted
from bbu_train.model import weights
from bbu_train.runs import folder as run_folder
from bbu_train.runs.identity import experiment_name
from bbu_train.runs.resume import resolve_run
from bbu_train.runtime import logs, preemption, screen
from bbu_train.runtime.screen import Section
from launchers import ranks
from launchers.cells import Cell
from launchers.preflight import estimate


def check(card: str, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Print the plan, the parameters, the memory, the work and the time of a run. No run is made.

    `card` names a GPU of `machine.CARDS` or says its GiB; "" is this machine. Raises InputError.
    """
    if ranks.are_several():
        raise InputError("--check needs one process: leave out torchrun, and give cluster.tasks_per_node.")
    with preemption.signals_raise(lambda name: Preempted(0, name, None)):
        print(_forecast(card, cfg, overrides), flush=True)


def _forecast(card: str, cfg: DictConfig, overrides: Sequence[str]) -> str:
    """Return what `check` prints."""
    choices = HydraConfig.get().runtime.choices
    cfg = resolve_run(cfg, experiment_name(choices.get("experiment")), overrides, in_sweep=False)
    logs.start(is_main=True)

    import torch

    from bbu_train.training.forecast import forecast
    from bbu_train.training.machine import named_machine, this_machine
    from bbu_train.training.setup import load_data

    try:
        weights.require(cfg.model.checkpoint, cfg.model.weights)
    except InputError:
        load_data(cfg.data)  # its faults come first: they do not need the weights
        raise
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = named_machine(card) if card else this_machine(here)
    environment = run_folder.read_environment(cfg.folder) if cfg.run is not None else {}
    known = forecast(cfg, machine, cfg.cluster.nodes * cfg.cluster.tasks_per_node, environment)
    cell = Cell((), {str(group): str(choice) for group, choice in choices.items()}, cfg)
    finished = None if card else estimate.from_finished_runs([cell])[0]
    expected = finished or estimate.from_requirements(cell, known.flops_per_step(), known.num_bytes())
    only_time = replace(expected, memory=None)  # another section has the memory
    text = estimate.format_estimates([cell], [only_time]).splitlines()[0].partition(": ")[2]
    time = Section("time", [text.removeprefix("time ")])
    return screen.as_text([*known.sections(cfg), time], max_lines=sys.maxsize)
