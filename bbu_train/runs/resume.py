"""How a command starts a run or goes on with one. It only reads, so every rank may call it; no torch."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.errors import InputError, all_problems
from bbu_train.runs import folder as run_folder
from bbu_train.runs.config_keys import choices, leaves, parse
from bbu_train.runs.identity import (
    LOCATION,
    checked_result_values,
    hash_values,
    is_neutral,
    normalize_number,
    result_values,
)

_ABSENT = object()


def resolve_run(
    cfg: DictConfig, experiment: str, overrides: Sequence[str], in_sweep: bool, swept: Sequence[str] = ()
) -> DictConfig:
    """The config that the run takes: its family named and, where it goes on with a run, that run's own.

    `overrides` are those of the command line. In a sweep a run is named by its identity, so that the same sweep
    again goes on with its cells; otherwise `run` may stay null, for `new_name`. `swept` are the keys that tell the
    cells of the sweep apart.
    """
    cfg = cfg.copy()
    hashed = hash_values(checked_result_values(cfg))
    given = [override.key_or_group for override in parse(overrides)]
    if "folder" in given:
        raise InputError("folder is made of outputs, sweep and run. Give those.")
    if noted := [key for key in given if key.split(".")[0] == "about"]:
        raise InputError(f"about is what the program notes of a run. Leave out {', '.join(noted)}.")
    if cfg.resume is not None:
        return _resumed(cfg, given)
    with open_dict(cfg):
        cfg.about = _about(cfg, hashed, overrides, in_sweep, swept)
    cfg.sweep = _name("sweep", experiment if cfg.sweep is None else cfg.sweep)
    if cfg.run is None and in_sweep:
        cfg.run = hashed
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
            given[key] = (
                ",".join(choices(override)) if chosen is None or OmegaConf.is_dict(chosen) else normalize_number(chosen)
            )
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
    if named := [key for key in given if key in LOCATION]:
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
    return _merged(stored, cfg, [*given, *LOCATION])


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


def _name(key: str, value: Any) -> str:
    if isinstance(value, float) or not re.fullmatch(r"[^./\\\s][^/\\]*", str(value)):
        raise InputError(f"{key}={value}: {key} becomes a folder's name, so it is a word, no path and no fraction.")
    return str(value)
