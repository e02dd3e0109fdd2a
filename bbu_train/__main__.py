"""`python -m bbu_train key=value ...`: compose the config, settle what the run is and where it lies, train."""

from bbu_train import preemption

if __name__ == "__main__":
    preemption.install()  # before the imports, which take time: an early signal must not kill the process

import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from bbu_train import command_line, runs  # noqa: E402
from launchers.launch import launch  # noqa: E402


def start(cfg: DictConfig, overrides: Sequence[str]) -> None:
    hydra = HydraConfig.get()
    experiment = runs.experiment_name(hydra.runtime.choices.get("experiment"))
    in_sweep = hydra.mode is RunMode.MULTIRUN
    swept = runs.swept_keys(sys.argv[1:]) if in_sweep else ()
    cfg = runs.settle(cfg, experiment, overrides, in_sweep, swept)

    if cfg.model.get("checkpoint") is not None:  # said before torch is imported, which takes seconds
        from bbu_train.model import weights

        weights.require(cfg.model.checkpoint, cfg.model.weights)

    from bbu_train.train import train

    train(cfg)


if __name__ == "__main__":
    sys.exit(command_line.run(start, command_line.config_folder(), launch))
