"""`python -m bbu_train key=value ...`: compose the config, settle what the run is and where it lies, train."""

from bbu_train.runtime import preemption

if __name__ == "__main__":
    preemption.install()  # before the imports, which take time: an early signal must not kill the process

import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from bbu_train.cli import main as command_line
from bbu_train.runs import identity, resume  # noqa: E402
from launchers.launch import launch  # noqa: E402


def start(cfg: DictConfig, overrides: Sequence[str]) -> None:
    experiment = identity.experiment_name(HydraConfig.get().runtime.choices.get("experiment"))
    cfg = resume.resolve_run(cfg, experiment, overrides, in_sweep=False)

    if cfg.model.get("checkpoint") is not None:  # said before torch is imported, which takes seconds
        from bbu_train.model import weights

        weights.require(cfg.model.checkpoint, cfg.model.weights)

    from bbu_train.train import train

    train(cfg)


if __name__ == "__main__":
    sys.exit(command_line.run(start, command_line.config_folder(), launch))
