"""Settings that a config may leave to the program: their value is then the word "auto".

The identity of a run has the word that was given. What the program took for it is in the run's `environment.json`. No
torch is needed here.
"""

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from bbu_train.runtime import hardware

AUTO = "auto"
PRECISION, THREADS = "engine.precision", "threads"
CHECKPOINTING, MICRO_BATCHES = "engine.gradient_checkpointing", "engine.num_micro_batches"
AUTO_SETTINGS: Mapping[str, bool | int | str] = {
    PRECISION: "bf16",
    "model.compile": True,
    "model.attention": "sdpa",
    "model.vocabulary_chunk": 1024,
    CHECKPOINTING: "selective",
    MICRO_BATCHES: 1,
    "num_workers": 2,
    THREADS: 2,
}
"""A value of each setting that may be "auto"."""
ROUNDING_ONLY_KEYS = tuple(key for key in AUTO_SETTINGS if key not in (PRECISION, THREADS))
"""Settings that lay out the same step: they change its result by rounding at most, so a run may go on with others."""
DEVICE = "about.device"
"""Whether the run computes on a "cpu" or a "gpu"."""
LEFT_OUT = "about.left_out"
"""What the experiment ties to a choice that was replaced: a text for each config group."""


def target_device(cfg: DictConfig) -> str:
    """Return "gpu" or "cpu": where the run will compute.

    A run that SLURM starts computes on what `cluster` asks for: the machine that submits it may have no GPU.
    """
    if is_slurm(cfg):
        return "gpu" if cfg.cluster.gpus_per_node else "cpu"
    return "gpu" if hardware.has_gpu() else "cpu"


def is_slurm(cfg: DictConfig) -> bool:
    """Whether a job of SLURM will compute the run."""
    return str(OmegaConf.select(cfg, "launchers._target_", default="")).startswith("launchers.slurm.")


def threads_change_result(cfg: DictConfig) -> bool:
    """Whether the given number of threads can change the result of a run.

    On a CPU results are bit-identical only with the same number. On a GPU threads only prepare its work.
    """
    return OmegaConf.select(cfg, DEVICE) != "gpu" and OmegaConf.select(cfg, THREADS) not in (None, AUTO)
