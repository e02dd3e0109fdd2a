"""The checks of a sweep that need torch, in a process of their own: `python -m launchers.preflight.child`.

It reads from stdin a list of `{"check": name, "config": path, "cells": [...]}`; the names are "values", which come
first, "data", "parameter_groups", "requirements" and "num_steps". It prints a line of JSON for each problem,
`{"cells": [...], "problem": text}`; if there is none, one for each "requirements" and "num_steps",
`{"cells": [...], "requirements": {...}}`.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is answered by the process that started this one

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import lru_cache  # noqa: E402
from typing import Any  # noqa: E402

from hydra.errors import InstantiationException  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from bbu_train.errors import InputError  # noqa: E402
from bbu_train.training import auto, config_checks, initial_weights  # noqa: E402
from bbu_train.training.forecast import forecast  # noqa: E402
from bbu_train.training.machine import target_machine  # noqa: E402
from bbu_train.training.outline import Outline, build_outline  # noqa: E402
from bbu_train.training.setup import RunData, RunInputs, load_data, prepare  # noqa: E402


def check_data(cfg: DictConfig) -> RunInputs:
    """Prepare a run as training does. Runs with the same data load it once."""
    return prepare(cfg, _load(OmegaConf.to_yaml(cfg.data, resolve=True)), _num_ranks(cfg))


@lru_cache(maxsize=4)
def _load(data: str) -> RunData:
    return load_data(OmegaConf.create(data))


def check_parameter_groups(cfg: DictConfig) -> Outline:
    """Check on a model of shapes that every parameter is in one group, no group is empty, and `init` fits."""
    applied = auto.apply(cfg, auto.settings(cfg, target_machine(cfg), {}))
    outline = build_outline(applied)
    initial_weights.check(applied, outline.model)
    return outline


def compute_requirements(cfg: DictConfig) -> dict[str, float]:
    """Return what a training step requires, by `training.forecast`, as `--check` of a run.

    `flops` are those of the model in a step of all processes together, a mean over the first steps. `num_bytes` are
    those that each process needs, by prediction: on a GPU of this machine in the fastest layout that fits, and where
    the GPU is not known in the layout that needs least. A run without steps requires nothing.
    """
    if cfg.steps == 0:
        return {"flops": 0, "num_bytes": 0}
    data = _load(OmegaConf.to_yaml(cfg.data, resolve=True))
    known = forecast(cfg, target_machine(cfg), _num_ranks(cfg), {}, data)
    return {"flops": known.flops_per_step(), "num_bytes": known.num_bytes()}


def _num_ranks(cfg: DictConfig) -> int:
    return cfg.cluster.nodes * cfg.cluster.tasks_per_node


def count_steps(cfg: DictConfig) -> int:
    """Return the number of steps of a run whose epochs are given."""
    return check_data(cfg).plan.num_steps


def main() -> None:
    tasks = json.load(sys.stdin)
    answers: list[dict[str, Any]] = []
    wrong: set[int] = set()  # cells with wrong values, which are refused for them alone
    for task in tasks:
        if task["cells"][0] not in wrong and (problem := _find_problem(task)) is not None:
            answers.append(problem)
            wrong.update(task["cells"] if task["check"] == "values" else ())
    if not answers:
        results = {"requirements": compute_requirements, "num_steps": count_steps}
        answers = [_answer(task, results[task["check"]]) for task in tasks if task["check"] in results]
    for answer in answers:
        print(json.dumps(answer))


def _find_problem(task: dict[str, Any]) -> dict[str, Any] | None:
    checks = {"values": config_checks.check, "data": check_data, "parameter_groups": check_parameter_groups}
    answer = _answer(task, checks[task["check"]]) if task["check"] in checks else {}
    return answer if "problem" in answer else None


def _answer(task: dict[str, Any], check: Callable[[DictConfig], Any]) -> dict[str, Any]:
    """Return what the check of a task returns, or the problem that it finds."""
    try:
        return {"cells": task["cells"], task["check"]: check(OmegaConf.load(task["config"]))}
    except (InputError, InstantiationException) as error:
        return {"cells": task["cells"], "problem": str(_find_input_error(error))}


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
