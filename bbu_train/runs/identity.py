"""The identity of a run: a hash of every config value that can change its result, and of the data that it reads.

No torch is needed here.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.errors import InputError, shorten
from bbu_train.runs.length import FULL_WARMUP, WARMUP, derived_key
from bbu_train.runs.settings import ROUNDING_ONLY_KEYS, THREADS, threads_change_result
from bbu_train.runtime.nested import leaves

LOCATION_KEYS = ("outputs", "sweep", "run", "folder")
NEUTRAL_KEYS = (
    *LOCATION_KEYS,
    *("about", "resume", "hydra", "cluster", "launchers", "search", "tracker", "checkpoint"),
    *("log_every", "log_lines_seconds", "eval_every", "save_every", "eval_batch_size", "gallery", "profile"),
    *ROUNDING_ONLY_KEYS,
)
"""Keys that the identity ignores, with everything below them: locations, names, cadence, layout.

A value that refers to one of them, such as `${outputs}/data`, is neutral too. So are places (`is_place`): what the
identity has of them is DATA and INIT, which are the same wherever the same files lie.
"""
STOPPING = "stopping."
"""What ends a run early counts even where it refers to a neutral key: there `eval_every` decides the last step."""
DATA = "about.data"
"""The fingerprint of the data that the run reads (`data_fingerprint`)."""
INIT = "about.init"
"""The hash of the weights that `init` names (`initial_weights`)."""


def is_neutral(key: str) -> bool:
    """Whether a dotted key is one of NEUTRAL_KEYS, lies below one, or is a place."""
    return is_place(key) or any(key == neutral or key.startswith(f"{neutral}.") for neutral in NEUTRAL_KEYS)


def is_place(key: str) -> bool:
    """Whether a dotted key says where data or weights lie, whose content is in the identity."""
    return key == "init" or is_data_root(key)


def is_data_root(key: str) -> bool:
    """Whether a dotted key is the root of a data set, such as `data.root`, or `data.source.root` of data=overfit."""
    return key.startswith("data.") and key.endswith(".root")


def run_identity(cfg: DictConfig) -> str:
    """Return the identity of a run: 8 hexadecimal digits over `result_values`.

    DATA and INIT are set before, by `resume.resolve_run`.
    """
    return hash_values(result_values(cfg))


def hash_values(values: Mapping[str, Any]) -> str:
    """Hash `result_values`. The first digit is a letter, because YAML would read `run=12345e67` as a number."""
    values = {key: normalize_number(value) for key, value in values.items()}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    start = next(i for i, digit in enumerate(digest) if digit in "abcdef")
    return (digest[start:] + digest)[:8]


def new_run_name(cfg: DictConfig) -> str:
    """Return `<time>-<identity>`. The clocks of ranks differ, so one rank must choose the name for all."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{run_identity(cfg)}"


def experiment_name(choice: str | None) -> str:
    """Return the name of the chosen conf/experiment/*.yaml, or "default"."""
    return choice.replace("/", "-") if choice else "default"


def result_values(cfg: DictConfig) -> dict[str, Any]:
    """Return every value that can change the result by its dotted key, with interpolations resolved, and DATA and INIT.

    The length of a run is what was given: of `epochs` and `steps` the one that decides, and nothing that follows from
    the other. A warm-up that was shortened to fit is the one before.
    """
    raw = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    resolved = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    derived = derived_key(cfg)
    if (full_warmup := OmegaConf.select(cfg, FULL_WARMUP)) is not None:
        resolved[WARMUP] = full_warmup
    ignored = (derived,) if threads_change_result(cfg) else (derived, THREADS)
    return {
        key: value
        for key, value in resolved.items()
        if (key in (DATA, INIT) and value is not None)
        or key.startswith(STOPPING)
        or not (key in ignored or is_neutral(key) or _refers_to_neutral(raw.get(key), derived))
    }


def check_values(cfg: DictConfig) -> None:
    """Raise InputError if a value is missing, cannot be resolved, or would be taken for a reference once more."""
    unresolved = leaves(OmegaConf.to_container(cfg, resolve=False))
    if missing := [key for key, value in unresolved if value == MISSING]:
        raise InputError(f"{', '.join(missing)} must be given, such as {missing[0]}=... on the command line.")
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"The config cannot be resolved: {error}") from error
    for key, value in leaves(resolved):
        if any(isinstance(text, str) and "${" in text for text in (value if isinstance(value, list) else [value])):
            raise InputError(
                f"{shorten(f'{key}={value}')}: a value cannot hold the text ${{, not even as \\${{, because what is "
                "built from the config takes it for a reference once more. Leave it out."
            )


def normalize_number(value: Any) -> Any:
    """Turn 2.0 into 2: both are the same value of a key."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refers_to_neutral(raw: Any, derived: str) -> bool:
    keys = re.findall(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else []
    return any(is_neutral(key) or key == derived for key in keys)
