"""A run's model, optimizer and average as shapes without weights: they lie on the meta device and take no memory."""

from dataclasses import dataclass

import torch
from omegaconf import DictConfig, open_dict

from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.training.protocols import Average
from bbu_train.training.setup import build


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
