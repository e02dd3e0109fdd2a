"""`--check` of a single run: what is known of it before it trains, by the code that checks a sweep."""

import sys
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bbu_train.model import weights
from bbu_train.runs.identity import experiment_name
from bbu_train.runs.resume import resolve_run
from bbu_train.runtime import logs
from launchers.cells import Cell
from launchers.preflight import estimate


def check(cfg: DictConfig, overrides: Sequence[str], card: str) -> None:
    """Print the plan, the parameters, the memory, the work and the time of a run. Nothing is written.

    `card` names a GPU of `auto.CARDS` or says its GiB; "" is this machine. Raises InputError with all that is wrong.
    """
    choices = HydraConfig.get().runtime.choices
    cfg = resolve_run(cfg, experiment_name(choices.get("experiment")), overrides, in_sweep=False)
    weights.require(cfg.model.checkpoint, cfg.model.weights)

    from bbu_train.runtime import distributed
    from bbu_train.training import auto
    from bbu_train.training.forecast import forecast

    logs.start(is_main=True)
    machine = auto.named_machine(card) if card else auto.this_machine(distributed.start())
    known = forecast(cfg, machine, distributed.world_size())
    for line in known.lines():
        print(line)
    cell = Cell((), {str(group): str(choice) for group, choice in choices.items()}, cfg)
    (finished,) = estimate.from_finished_runs([cell])
    expected = finished or estimate.from_requirements(cell, known.flops_per_step(), known.num_bytes())
    print("time     ", estimate.format_estimates([cell], [expected]).splitlines()[0].partition(": ")[2])
    sys.stdout.flush()
