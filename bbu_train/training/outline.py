"""A run's model, optimizer and average as shapes without weights: they lie on the meta device and take no memory."""

from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.runtime.config_folder import config_folder
from bbu_train.training.protocols import Average
from bbu_train.training.setup import build

SMALLEST_PUBLISHED = "qwen25vl3b"
"""The choice of conf/model with the fewest weights of those that are published."""


@dataclass(frozen=True)
class Outline:
    """What trains in a run, with the groups, dtypes and frozen parameters of the run itself."""

    model: GroundingModel
    optimizer: MixedAdamW
    average: Average


def build_outline(cfg: DictConfig) -> Outline:
    """Build the outline of a config in which nothing is "auto".

    This checks that every parameter is in one group and that no group is empty. Raises InputError, or Hydra's
    InstantiationException from it.
    """
    cfg = cfg.copy()
    if cfg.model.weights != "random":
        from transformers import AutoConfig

        with open_dict(cfg):
            cfg.model.shape = AutoConfig.from_pretrained(cfg.model.checkpoint).to_dict()
            cfg.model.weights = "random"
    cfg.model.compile, cfg.model.attention = False, "sdpa"  # no kernel runs on the meta device
    model = build(cfg.model.network)(device=torch.device("meta"), head=build(cfg.head))
    optimizer = build(cfg.optimizer)(model)
    model.check_teacher_cache()
    return Outline(model, optimizer, build(cfg.average)(model, optimizer))


def smallest_published(cfg: DictConfig) -> Outline:
    """Return the outline of the same run with `model=qwen25vl3b`. Its pictures and tokens are those of every model."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.model.shape = OmegaConf.load(config_folder() / "model" / f"{SMALLEST_PUBLISHED}.yaml").shape
        cfg.model.weights = "random"  # of this shape: no checkpoint is looked up
    return build_outline(cfg)
