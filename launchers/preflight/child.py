"""What only torch can say of a sweep, in a process of its own: `python -m launchers.preflight.child` reads from stdin
a list of `{"what": "data", "groups" or "needs", "config": path, "cells": [...]}`, and answers with a line for each
problem. Where there is none, it answers with a line for what each of "needs" takes."""

import json
import sys
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.collator.sizes import sizes
from bbu_train.errors import InputError
from bbu_train.optimizer.groups import state_bytes
from bbu_train.training import loader, planning, setup

NUM_STEPS = 4  # of the plan, over which the arithmetic of a step is a mean: their pictures are read
build = partial(instantiate, _convert_="all")


def data(cfg: DictConfig) -> tuple[planning.StepPlan, loader.SampleSource, object]:
    """All that a run finds out before it builds its model, in the same order: the plan, its source, and how pictures
    are taken."""
    loaded = _loaded(OmegaConf.to_yaml(cfg.data, resolve=True))
    setup.num_objects((*loaded.train, *loaded.validation), cfg.head.get("num_queries"))
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = build(cfg.collator)(preprocessing.picture_format)
    setup.max_tokens(collator.max_tokens, preprocessing.max_positions)
    source, _ = loader.sources(loaded, build(cfg.augmentation), builder, preprocessing.cost, collator)
    return planning.StepPlan(build(cfg.sampler), source, cfg.steps), source, preprocessing.picture_format


@lru_cache(maxsize=4)
def _loaded(text: str):
    return build(OmegaConf.create(text))


def groups(cfg: DictConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Every parameter in one group, every group with parameters: the model has its shape but no weights."""
    if cfg.model.weights != "random":
        from transformers import AutoConfig

        with open_dict(cfg):
            cfg.model.shape = AutoConfig.from_pretrained(cfg.model.checkpoint).to_dict()
            cfg.model.weights = "random"
    cfg.model.compile = False
    model = build(cfg.model.network)(device=torch.device("meta"), head=build(cfg.head))
    optimizer = build(cfg.optimizer)(model)
    model.check_teacher_cache()
    return model, optimizer


def needs(cfg: DictConfig) -> dict[str, float]:
    """Useful operations of a step, of all processes together, as a mean over the first steps; and the bytes of weights,
    gradients, the optimizer's state and an average, which each process holds besides its activations."""
    plan, source, picture_format = data(cfg)
    model, optimizer = groups(cfg)
    averages = build(cfg.average)(model, optimizer).averages
    steps = list(islice(plan.starting_at(0), NUM_STEPS))
    encoded = [source.encode(draw) for step in steps for row in step for draw in row]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return {
        "operations": model.training_flops(sizes(encoded, picture_format)) / len(steps),
        "num_bytes": weights + gradients + state_bytes(optimizer) + sum(its.nbytes for its in averages.values()),
    }


def main() -> None:
    tasks = json.load(sys.stdin)
    problems = [its for its in (_problem(task) for task in tasks) if its is not None]
    needed = [] if problems else [_needed(task) for task in tasks if task["what"] == "needs"]
    for answer in (*problems, *needed):
        print(json.dumps(answer))


def _problem(task: dict[str, Any]) -> dict[str, Any] | None:
    try:
        if task["what"] == "data":
            data(OmegaConf.load(task["config"]))
        if task["what"] == "groups":
            groups(OmegaConf.load(task["config"]))
    except (InputError, InstantiationException) as error:
        return {"cells": task["cells"], "problem": str(_users(error))}
    return None


def _needed(task: dict[str, Any]) -> dict[str, Any]:
    return {"cells": task["cells"], "needs": needs(OmegaConf.load(task["config"]))}


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
