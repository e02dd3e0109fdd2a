"""The samples that are scored: a split of a run's data."""

from pathlib import Path

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from bbu_train.data.splits import Splits
from bbu_train.errors import InputError
from bbu_train.training.setup import build
from bbu_train.types.samples import Sample


def load_split(cfg: DictConfig, split: str) -> tuple[Splits, tuple[Sample, ...]]:
    """Return the data of a run's config and the samples of `split`: "train", "validation" or another split.

    Another split, such as "test", takes the place of validation in `cfg`, so its teachers also come from the training
    pictures. Raises InputError if the data has no other splits.
    """
    if split in ("train", "validation"):
        data = build(cfg.data)
        return data, getattr(data, split)
    if "validation" not in cfg.data:
        raise InputError(f"split={split}: the data of this run ({cfg.data._target_}) has train and validation only.")
    suffix = Path(str(cfg.data.validation)).suffix
    cfg.data.validation = split if split.endswith(suffix) else f"{split}{suffix}"
    try:
        data = build(cfg.data)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise InputError(f"split={split}: {error.__cause__}") from error
        raise
    return data, data.validation
