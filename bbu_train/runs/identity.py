"""A run's identity and its name, and how a command goes on with a run. It only reads, so every rank may; no torch."""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bbu_train.errors import InputError, all_problems
from bbu_train.runs import folder as run_folder
from bbu_train.runs.config_keys import choices, leaves, parse

PLACE = ("outputs", "sweep", "run", "folder")
NEUTRAL = (
    *(*PLACE, "about", "resume", "hydra", "cluster", "launchers", "search", "tracker", "checkpoint"),
    *("log_every", "eval_every", "save_every", "eval_samples", "gallery", "profile", "num_workers", "data.root"),
)
"""Keys that cannot change the result, each with all that lies under it: places, names, cadence, workers.

A value that refers to one of them, such as `${outputs}/made`, is neutral too.
"""

_ABSENT = object()


def is_neutral(key: str) -> bool:
    return any(key == neutral or key.startswith(f"{neutral}.") for neutral in NEUTRAL)


def identity(cfg: DictConfig) -> str:
    """A hash of 8 hexadecimal digits over the keys that can change the result.

    It begins with a letter, or `run=12345e67` would be read as a number.
    """
    return identity_of(result_values(cfg))


def identity_of(values: Mapping[str, Any]) -> str:
    """The same, where the values are known already."""
    values = {key: _number(value) for key, value in values.items()}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    start = next(i for i, digit in enumerate(digest) if digit in "abcdef")
    return (digest[start:] + digest)[:8]


def new_name(cfg: DictConfig) -> str:
    """`<time>-<identity>`. Clocks differ between ranks: one rank names the run and tells the others."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{identity(cfg)}"


def experiment_name(choice: str | Sequence[str] | None) -> str:
    """The name of the chosen conf/experiment/*.yaml, else "default"."""
    if not choice:
        return "default"
    return (choice if isinstance(choice, str) else "+".join(choice)).replace("/", "-")


def settle(
    cfg: DictConfig, experiment: str, overrides: Sequence[str], in_sweep: bool, swept: Sequence[str] = ()
) -> DictConfig:
    """The config that the run takes: its family named and, where it goes on with a run, that run's own.

    `overrides` are those of the command line. In a sweep a run is named by its identity, so that the same sweep
    again goes on with its cells; otherwise `run` may stay null, for `new_name`. `swept` are the keys that tell the
    cells of the sweep apart.
    """
    cfg = cfg.copy()
    identity = identity_of(_values_or_refusal(cfg))
    given = [override.key_or_group for override in parse(overrides)]
    if "folder" in given:
        raise InputError("folder is made of outputs, sweep and run. Give those.")
    if noted := [key for key in given if key.split(".")[0] == "about"]:
        raise InputError(f"about is what the program notes of a run. Leave out {', '.join(noted)}.")
    if cfg.resume is not None:
        return _resumed(cfg, given)
    with open_dict(cfg):
        cfg.about = _about(cfg, identity, overrides, in_sweep, swept)
    cfg.sweep = _name("sweep", experiment if cfg.sweep is None else cfg.sweep)
    if cfg.run is None and in_sweep:
        cfg.run = identity
    if cfg.run is None:
        return cfg
    cfg.run = _name("run", cfg.run)
    return _same_run(cfg, given) if (Path(cfg.folder) / run_folder.CONFIG).exists() else cfg


def _about(
    cfg: DictConfig, identity: str, overrides: Sequence[str], in_sweep: bool, swept: Sequence[str]
) -> dict[str, Any]:
    """What conf/config.yaml says of `about`. Values are written as the config has them: 1e-6 and 1e-06 are one."""
    given: dict[str, Any] = {}
    for override in parse(overrides):
        key = override.key_or_group
        if is_neutral(key.replace("/", ".")):
            continue
        chosen = OmegaConf.select(cfg, key)
        if override.is_delete():
            given[key] = "removed"
        elif isinstance(override.value(), dict):
            given |= dict(leaves(OmegaConf.to_container(chosen, resolve=True), key))
        else:
            given[key] = ",".join(choices(override)) if chosen is None or OmegaConf.is_dict(chosen) else _number(chosen)
    words = {key: str(given[key]).replace("${", "\\${") for key in sorted(given, key=lambda key: key not in swept)}
    title = " ".join(f"{_shortened(key, swept)}={words[key]}" for key in words if key in swept)
    return {
        "identity": identity,
        "in_sweep": in_sweep,
        "title": title or None,
        "overrides": [f"{key}={word}" for key, word in words.items()],
    }


def _shortened(key: str, keys: Sequence[str]) -> str:
    """The last parts of a dotted key, as many as tell it from the other `keys`: MLflow's tables show 20 letters."""
    parts = key.split(".")
    endings = [".".join(parts[-number:]) for number in range(1, len(parts) + 1)]
    others = [f".{other}" for other in keys if other != key]
    return next((ending for ending in endings if not any(other.endswith(f".{ending}") for other in others)), key)


def _resumed(cfg: DictConfig, given: Sequence[str]) -> DictConfig:
    """The run that `resume=` names. What the command does not give, the run decides."""
    if named := [key for key in given if key in PLACE]:
        raise InputError(f"resume={cfg.resume} already says where the run lies. Leave out {', '.join(named)}.")
    stored = run_folder.load(str(cfg.resume))
    everything = "experiment" in given  # its file may set any key
    differing = _differences(stored, cfg, None if everything else given)
    _refuse(differing, cfg.resume, "Leave these out, or start a new run with them.")
    return _merged(stored, cfg, [*given, "resume"])


def _same_run(cfg: DictConfig, given: Sequence[str]) -> DictConfig:
    """The run that `run=` names and that exists. The same command composes the same config."""
    stored = run_folder.load(cfg.folder)
    _refuse(_differences(stored, cfg, None), cfg.folder, "Give another run=<name>, or the same values.")
    return _merged(stored, cfg, [*given, *PLACE])


def _merged(stored: DictConfig, cfg: DictConfig, keys: Sequence[str]) -> DictConfig:
    """`stored` with the neutral ones of `keys` as `cfg` has them, and with the neutral keys that it lacks."""
    merged, raw = stored.copy(), OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    with open_dict(merged):
        for key in filter(is_neutral, [*keys, *(key for key in raw if key not in stored)]):
            value: Any = raw
            for part in key.split("."):
                value = value[part]
            OmegaConf.update(merged, key, value, merge=False)
    return merged


def _differences(stored: DictConfig, cfg: DictConfig, keys: Sequence[str] | None) -> list[str]:
    """What differs under `keys`, or anywhere, and can change the result. References to such keys are spared."""
    old, new = result_values(stored), result_values(cfg)
    raw_old, raw_new = (dict(leaves(OmegaConf.to_container(config, resolve=False))) for config in (stored, cfg))
    found = []
    for key in sorted(old.keys() | new.keys()):
        asked = keys is None or any(key == given or key.startswith(f"{given}.") for given in keys)
        differs = old.get(key, _ABSENT) != new.get(key, _ABSENT) and raw_old.get(key, _ABSENT) != raw_new.get(
            key, _ABSENT
        )
        if asked and differs:
            found.append(f"{key} is {_shown(old, key)} in the run and {_shown(new, key)} in this command")
    return found


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False, default=str) if key in values else "absent"


def _refuse(differing: Sequence[str], folder: str, remedy: str) -> None:
    if differing:
        raise all_problems(f"The run in {folder} was made with another config", differing, remedy)


def result_values(cfg: DictConfig) -> dict[str, Any]:
    """Every leaf that can change the result, resolved."""
    raw = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    resolved = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    return {key: value for key, value in resolved.items() if not (is_neutral(key) or _refers_to_neutral(raw.get(key)))}


def _refers_to_neutral(raw: Any) -> bool:
    return isinstance(raw, str) and any(is_neutral(key) for key in re.findall(r"\$\{([\w.]+)\}", raw))


def _number(value: Any) -> Any:
    """2.0 and 2 are the same value of a key."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _values_or_refusal(cfg: DictConfig) -> dict[str, Any]:
    """`result_values`, of a config that can be resolved; it is resolved once, as that takes the time of a sweep."""
    values = leaves(OmegaConf.to_container(cfg, resolve=False))
    if missing := [key for key, value in values if value == MISSING]:
        raise InputError(f"{', '.join(missing)} must be given, such as {missing[0]}=... on the command line.")
    try:
        return result_values(cfg)
    except OmegaConfBaseException as error:
        raise InputError(f"The config cannot be resolved: {error}") from error


def _name(key: str, value: Any) -> str:
    if isinstance(value, float) or not re.fullmatch(r"[^./\\\s][^/\\]*", str(value)):
        raise InputError(f"{key}={value}: {key} becomes a folder's name, so it is a word, no path and no fraction.")
    return str(value)
