"""What is wrong with the values of a config, before data or model load: everything in one message."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.errors import InputError, all_problems
from bbu_train.ops.numbers import is_count, is_number
from bbu_train.runs.length import derived_key, problems_of_length
from bbu_train.runs.settings import AUTO_SETTINGS
from bbu_train.training import auto

build = partial(instantiate, _convert_="all")
"""Build a component from its config. Components take plain Python values, never a DictConfig."""

MINIMUMS = {
    "seed": 0,
    "steps": 0,
    "log_every": 1,
    "log_lines_seconds": 1,
    "eval_every": 1,
    "save_every": 1,
    "eval_batch_size": 1,
    "gallery": 0,
    "data.teachers.validation_seed": 0,
    "collator.max_tokens": 1,
    "model.min_pixels": 1,
    "model.max_pixels": 1,
    "head.num_queries": 1,
    "head.d_model": 1,
    "head.num_heads": 1,
    "head.num_decoder_layers": 1,
    "head.num_caption_layers": 1,
    "head.adapter_ratio": 1,
    "head.split": 1,
    "head.num_denoising_groups": 0,
    "head.max_caption_tokens": 1,
    "cluster.nodes": 1,
    "cluster.tasks_per_node": 1,
    "cluster.gpus_per_node": 0,
}
"""The smallest value of each whole number that no component checks itself."""
OPTIONAL = ("eval_every", "save_every")
MAX_SEED = 2**63 - 1
"""The largest seed that torch takes."""
COMPONENTS = ("augmentation", "sampler", "schedule", "stopping", "loss", "average", "checkpoint")
"""Config groups whose components check their values when they are built, which needs neither data nor model."""
_ABSENT = object()


def check(cfg: DictConfig) -> None:
    """Raise InputError that lists every value of the config that is wrong. What a run lacks, such as a head, may be
    missing.
    """
    problems = [*_counts(cfg), *auto.problems(cfg), *_limits(cfg)]
    copy = cfg.copy()
    for key, example in AUTO_SETTINGS.items():  # those that are wrong are listed already
        OmegaConf.update(copy, key, example)
    if not is_count(cfg.steps):
        copy.steps = sys.maxsize
    with open_dict(copy):
        for group in COMPONENTS:
            problems += _problems_of(copy, group)
    if problems:
        raise all_problems("The config", list(dict.fromkeys(problems)), "Correct the values listed.")


def _counts(cfg: DictConfig) -> Iterator[str]:
    """Yield every key of MINIMUMS that is no whole number, or too small. OPTIONAL keys may be null, meaning never."""
    yield from problems_of_length(cfg)
    derived = derived_key(cfg)
    for key, minimum in MINIMUMS.items():
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if (
            value is not _ABSENT
            and not (value is None and key in (*OPTIONAL, derived))
            and not is_count(value, minimum)
        ):
            null = ", or null for never" if key in OPTIONAL else ""
            yield f"{key}={_as_text(value)}: expected a whole number of at least {minimum}{null}"


def _limits(cfg: DictConfig) -> Iterator[str]:
    """Yield what is wrong with values that limit each other, or that no component checks before the model loads."""
    if is_count(cfg.seed, MAX_SEED + 1):
        yield f"seed={cfg.seed}: expected at most {MAX_SEED}"
    low, high = cfg.model.min_pixels, cfg.model.max_pixels
    if is_count(low, 1) and is_count(high, 1) and low > high:
        yield f"model.min_pixels={low} is above model.max_pixels={high}: give one of them the value of the other"
    norm = cfg.engine.max_grad_norm
    if norm is not None and not (is_number(norm) and norm > 0):
        yield f"engine.max_grad_norm={norm}: expected a number above 0, or null for no limit"
    if (too_long := cfg.collator.too_long) not in ("error", "drop"):
        yield f"collator.too_long={too_long}: expected error or drop"
    width, num_heads = cfg.head.get("d_model"), cfg.head.get("num_heads")
    if is_count(width, 1) and is_count(num_heads, 1) and width % (unit := 4 * num_heads):
        fits = width // unit * unit, (width // unit + 1) * unit
        texts = " or ".join(str(value) for value in fits if value > 0)
        yield f"head.d_model={width}: expected a multiple of 4 x head.num_heads={num_heads}, such as {texts}"


def _problems_of(cfg: DictConfig, key: str) -> list[str]:
    """Build the component at `key`, and return what it and the components below it refuse.

    Those that are refused become null, so that the one above them can be built and checked as well.
    """
    node = OmegaConf.select(cfg, key)
    below: list[str] = []
    for name, child in list(node.items()):
        if OmegaConf.is_dict(child) and "_target_" in child and (found := _problems_of(cfg, f"{key}.{name}")):
            below += found
            node[name] = None
    try:
        build(node)
    except (InputError, InstantiationException) as error:
        cause = error if isinstance(error, InputError) else error.__cause__
        if isinstance(cause, InputError):
            return [*below, *_without_frame(cause)]
        if not below:
            raise
    return below


def _without_frame(error: InputError) -> Sequence[str]:
    """Return the problems of a component's error: those that `all_problems` listed, or the message itself."""
    _, *lines = str(error).split("\n")
    return [line.strip() for line in lines[:-1]] or [str(error)]


def _as_text(value: Any) -> str:
    return "null" if value is None else str(value)
