"""The checks of a sweep that need torch, in a process of their own: `python -m launchers.preflight.child`.

It reads from stdin a list of `{"check": "data", "parameter_groups" or "requirements", "config": path, "cells": [...]}`.
It prints a line of JSON for each problem, `{"cells": [...], "problem": text}`; if there is none, one for each
"requirements", `{"cells": [...], "requirements": {...}}`.
"""

import json
import sys
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.collator.sizes import sizes
from bbu_train.errors import InputError
from bbu_train.ops.activations import Execution
from bbu_train.training.memory import allowed_layouts, plan_memory
from bbu_train.training.setup import RunData, RunInputs, build, load_data, prepare

NUM_STEPS = 4  # first steps of the plan, whose pictures are read and whose FLOPs are averaged


def check_data(cfg: DictConfig) -> RunInputs:
    """Prepare a run as training does. Runs with the same data load it once."""
    return prepare(cfg, _load(OmegaConf.to_yaml(cfg.data, resolve=True)))


@lru_cache(maxsize=4)
def _load(data: str) -> RunData:
    return load_data(OmegaConf.create(data))


def check_parameter_groups(cfg: DictConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Check that every parameter is in one group and no group is empty, on a model with shapes but no weights.

    Return that model and its optimizer.
    """
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


def compute_requirements(cfg: DictConfig) -> dict[str, float]:
    """Return what a training step requires.

    `flops` are those of the model in a step of all processes together, a mean over the first steps. `num_bytes` are
    those that each process needs, by prediction, in the layout that needs least of those that the config allows.
    """
    run = check_data(cfg)
    execution = _execution(cfg)
    model, optimizer = check_parameter_groups(cfg)
    steps = list(islice(run.plan.starting_at(0), NUM_STEPS))
    encoded = [run.train.encode(draw) for step in steps for row in step for draw in row]
    average, num_ranks = build(cfg.average)(model, optimizer), cfg.cluster.nodes * cfg.cluster.tasks_per_node
    layouts = allowed_layouts(run, cfg.engine.gradient_checkpointing, cfg.engine.num_micro_batches, num_ranks)
    evaluates = cfg.eval_every is not None
    planned = plan_memory(model, optimizer, average, run, layouts, execution, num_ranks, evaluates)
    return {
        "flops": model.training_flops(sizes(encoded, run.builder.picture_format)) / len(steps),
        "num_bytes": min(candidate.prediction.peak for candidate in planned),
    }


def _execution(cfg: DictConfig) -> Execution:
    """Return how the job computes. Which kernels are installed there is unknown here, and makes little difference."""
    is_on_gpu = cfg.cluster.gpus_per_node > 0
    attention = cfg.model.attention
    if attention == "auto":
        attention = "flash_attention_2" if is_on_gpu and cfg.engine.precision != "fp32" else "sdpa"
    return Execution(cfg.engine.precision, cfg.model.compile, attention, "none", is_on_gpu)


def main() -> None:
    tasks = json.load(sys.stdin)
    answers = [problem for problem in map(_find_problem, tasks) if problem is not None]
    if not answers:
        answers = [_answer_requirements(task) for task in tasks if task["check"] == "requirements"]
    for answer in answers:
        print(json.dumps(answer))


def _find_problem(task: dict[str, Any]) -> dict[str, Any] | None:
    try:
        if task["check"] == "data":
            check_data(OmegaConf.load(task["config"]))
        if task["check"] == "parameter_groups":
            check_parameter_groups(OmegaConf.load(task["config"]))
    except (InputError, InstantiationException) as error:
        return {"cells": task["cells"], "problem": str(_find_input_error(error))}
    return None


def _answer_requirements(task: dict[str, Any]) -> dict[str, Any]:
    return {"cells": task["cells"], "requirements": compute_requirements(OmegaConf.load(task["config"]))}


def _find_input_error(error: BaseException) -> InputError:
    """Return the InputError that `instantiate` may have wrapped. Any other error is a defect, and raised."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    if cause is None:
        raise error
    return cause


if __name__ == "__main__":
    main()
