"""Which pictures are scored."""

from pathlib import Path

from omegaconf import DictConfig

from bbu_train.data.splits import Splits
from bbu_train.errors import InputError
from bbu_train.predict.run import build
from bbu_train.types.samples import Sample


def load(cfg: DictConfig, split: str) -> tuple[Splits, tuple[Sample, ...]]:
    """The data of a run's config, and of it the samples of a split: "train", "validation", or another one of its data.

    Another is read in the place of validation, so its teachers come from the training pictures, too.
    """
    if split in ("train", "validation"):
        data = build(cfg.data)
        return data, getattr(data, split)
    if "validation" not in cfg.data:
        raise InputError(f"split={split}: the data of this run ({cfg.data._target_}) has train and validation only.")
    suffix = Path(split).suffix or Path(cfg.data.validation).suffix
    cfg.data.validation = str(Path(split).with_suffix(suffix))
    data = build(cfg.data)
    return data, data.validation
