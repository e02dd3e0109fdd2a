"""The identity of a run: a hash of everything that can change its result. Needs no torch."""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.errors import InputError
from bbu_train.runs.config_keys import leaves

LOCATION = ("outputs", "sweep", "run", "folder")
NEUTRAL = (
    *(*LOCATION, "about", "resume", "hydra", "cluster", "launchers", "search", "tracker", "checkpoint"),
    *("log_every", "eval_every", "save_every", "eval_batch_size", "gallery", "profile", "num_workers", "data.root"),
)
"""Keys that cannot change the result, each with all that lies under it: places, names, cadence, workers.

A value that refers to one of them, such as `${outputs}/made`, is neutral too.
"""


def is_neutral(key: str) -> bool:
    return any(key == neutral or key.startswith(f"{neutral}.") for neutral in NEUTRAL)


def run_identity(cfg: DictConfig) -> str:
    """A hash of 8 hexadecimal digits over the keys that can change the result.

    It begins with a letter, or `run=12345e67` would be read as a number.
    """
    return hash_values(result_values(cfg))


def hash_values(values: Mapping[str, Any]) -> str:
    """The same, where the values are known already."""
    values = {key: normalize_number(value) for key, value in values.items()}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    start = next(i for i, digit in enumerate(digest) if digit in "abcdef")
    return (digest[start:] + digest)[:8]


def new_run_name(cfg: DictConfig) -> str:
    """`<time>-<identity>`. Clocks differ between ranks: one rank names the run and tells the others."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{run_identity(cfg)}"


def experiment_name(choice: str | Sequence[str] | None) -> str:
    """The name of the chosen conf/experiment/*.yaml, else "default"."""
    if not choice:
        return "default"
    return (choice if isinstance(choice, str) else "+".join(choice)).replace("/", "-")


def result_values(cfg: DictConfig) -> dict[str, Any]:
    """Every leaf that can change the result, resolved."""
    raw = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    resolved = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    return {key: value for key, value in resolved.items() if not (is_neutral(key) or _refers_to_neutral(raw.get(key)))}


def _refers_to_neutral(raw: Any) -> bool:
    return isinstance(raw, str) and any(is_neutral(key) for key in re.findall(r"\$\{([\w.]+)\}", raw))


def normalize_number(value: Any) -> Any:
    """2.0 and 2 are the same value of a key."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def checked_result_values(cfg: DictConfig) -> dict[str, Any]:
    """`result_values`, of a config that can be resolved; it is resolved once, as that takes the time of a sweep."""
    values = leaves(OmegaConf.to_container(cfg, resolve=False))
    if missing := [key for key, value in values if value == MISSING]:
        raise InputError(f"{', '.join(missing)} must be given, such as {missing[0]}=... on the command line.")
    try:
        return result_values(cfg)
    except OmegaConfBaseException as error:
        raise InputError(f"The config cannot be resolved: {error}") from error
