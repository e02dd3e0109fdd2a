"""`python -m bbu_train key=value ...`: compose the config, find out which run it means, and train."""

from bbu_train.runtime import preemption

if __name__ == "__main__":
    preemption.hold_interrupts()
    preemption.install()  # before the slow imports: a signal that arrives during them must not kill the process

import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from bbu_train.cli.main import run_command  # noqa: E402
from bbu_train.errors import Preempted  # noqa: E402
from bbu_train.model import weights  # noqa: E402
from bbu_train.runs.identity import experiment_name  # noqa: E402
from bbu_train.runs.resume import resolve_run  # noqa: E402
from bbu_train.runtime import logs  # noqa: E402
from bbu_train.runtime.config_folder import config_folder  # noqa: E402
from launchers.launch import launch  # noqa: E402
from launchers.preflight.single import check  # noqa: E402


def start(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Train the run that this config means. Missing weights are reported before torch is imported."""
    logs.start(os.environ.get("RANK", "0") == "0")
    experiment = experiment_name(HydraConfig.get().runtime.choices.get("experiment"))
    with preemption.signals_raise(lambda name: Preempted(0, name, None)):
        cfg = resolve_run(cfg, experiment, overrides, in_sweep=False)
        weights.require(cfg.model.checkpoint, cfg.model.weights)

        from bbu_train.train import train

    train(cfg)


if __name__ == "__main__":
    sys.exit(run_command(start, config_folder(), launch, check))
