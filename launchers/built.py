"""What only torch can say of a sweep, in a process of its own: `python -m launchers.built` reads from stdin a list of
`{"what": "data" or "groups", "config": path, "cells": [...]}`, and answers with a line for each problem."""

import json
import sys
from functools import lru_cache, partial

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train import checks, loader, planning
from bbu_train.errors import InputError

build = partial(instantiate, _convert_="all")


def data(cfg: DictConfig) -> None:
    """All that a run finds out before it builds its model, in the same order."""
    loaded = _loaded(OmegaConf.to_yaml(cfg.data, resolve=True))
    checks.num_objects((*loaded.train, *loaded.validation), cfg.head.get("num_queries"))
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = build(cfg.collator)(preprocessing.picture_format)
    checks.max_tokens(collator.max_tokens, preprocessing.max_positions)
    source, _ = loader.sources(loaded, builder, preprocessing.cost, collator)
    planning.Plan(build(cfg.sampler), source, cfg.steps)


@lru_cache(maxsize=4)
def _loaded(text: str):
    return build(OmegaConf.create(text))


def groups(cfg: DictConfig) -> None:
    """Every parameter in one group, every group with parameters: the model has its shape but no weights."""
    if cfg.model.weights != "random":
        from transformers import AutoConfig

        with open_dict(cfg):
            cfg.model.shape = AutoConfig.from_pretrained(cfg.model.checkpoint).to_dict()
            cfg.model.weights = "random"
    cfg.model.compile = False
    model = build(cfg.model.network)(device=torch.device("meta"), head=build(cfg.head))
    build(cfg.optimizer)(model)
    model.check_teacher_cache()


def main() -> None:
    checks_of = {"data": data, "groups": groups}
    for task in json.load(sys.stdin):
        try:
            checks_of[task["what"]](OmegaConf.load(task["config"]))
        except (InputError, InstantiationException) as error:
            print(json.dumps({"cells": task["cells"], "problem": str(_users(error))}), flush=True)


def _users(error: BaseException) -> InputError:
    """The user's error, which `instantiate` may have wrapped. Any other is a defect, and raised."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    if cause is None:
        raise error
    return cause


if __name__ == "__main__":
    main()
