"""Which run a command means: a new one, or an existing one that it resumes.

`run=<name>` with the same values, or `resume=<folder>`, resumes a run. The run keeps its own config; a command may
change only neutral keys (`identity.NEUTRAL_KEYS`), and the data must be the same. Nothing here writes but the cache of
fingerprints, so every rank may call it. No torch is needed.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.errors import InputError, all_problems
from bbu_train.runs import folder as run_folder
from bbu_train.runs import initial_weights
from bbu_train.runs.config_keys import choices, parse
from bbu_train.runs.data_fingerprint import fingerprint, refuse_changed
from bbu_train.runs.identity import (
    DATA,
    INIT,
    LOCATION_KEYS,
    check_values,
    is_neutral,
    is_place,
    normalize_number,
    result_values,
    run_identity,
)
from bbu_train.runs.length import EPOCHS, FULL_WARMUP, STEPS, WARMUP, choose_length, shorten_warmup
from bbu_train.runs.names import check_name, folder_name
from bbu_train.runs.settings import DEVICE, LEFT_OUT, THREADS, target_device, threads_change_result
from bbu_train.runtime.nested import leaves
from bbu_train.runtime.writable import require_writable

log = logging.getLogger(__name__)
_ABSENT = object()


def resolve_run(
    cfg: DictConfig,
    experiment: str,
    overrides: Sequence[str],
    in_sweep: bool,
    swept_keys: Sequence[str] = (),
    known_data: dict[Path, str] | None = None,
) -> DictConfig:
    """Return the config of the run, with `sweep` and `run` set. For an existing run, return its stored config.

    `overrides` come from the command line. In a sweep the identity names the run, so that the same sweep resumes
    its cells; a single run may stay unnamed until `identity.new_run_name`. `swept_keys` tell the cells of the sweep
    apart; `known_data` holds the fingerprints of the cells before (`data_fingerprint.fingerprint`). Raises InputError
    for a value that cannot be resolved or that differs from the existing run's, and for data that cannot be read or
    that has changed.
    """
    cfg = cfg.copy()
    check_values(cfg)
    given_keys = [override.key_or_group for override in parse(overrides)]
    if "folder" in given_keys:
        raise InputError("folder is made of outputs, sweep and run. Give those.")
    if noted := [key for key in given_keys if key.split(".")[0] == "about"]:
        raise InputError(f"about is what the program notes about a run. Leave out {', '.join(noted)}.")
    require_writable("outputs", Path(cfg.outputs).expanduser())
    choose_length(cfg, given_keys)
    shorten_warmup(cfg, given_keys)
    with open_dict(cfg):
        OmegaConf.update(cfg, DEVICE, target_device(cfg))
    if cfg.resume is not None:
        return _note_overrides(_resume_folder(cfg, given_keys), overrides)
    with open_dict(cfg):
        OmegaConf.update(cfg, DATA, fingerprint(cfg, known_data))
        if cfg.get("init") is not None:
            weights = initial_weights.locate(str(cfg.init))
            cfg.init = str(weights)
            OmegaConf.update(cfg, INIT, initial_weights.digest(weights))
        cfg.about = _about(cfg, overrides, in_sweep, swept_keys)
    _set_name(cfg, "sweep", experiment if cfg.sweep is None else cfg.sweep)
    if cfg.run is None and in_sweep:
        cfg.run = cfg.about.identity
    if cfg.run is None:
        return cfg
    _set_name(cfg, "run", cfg.run)
    exists = (Path(cfg.folder) / run_folder.CONFIG).exists()
    return _note_overrides(_resume_name(cfg, given_keys, known_data), overrides) if exists else cfg


def _note_overrides(merged: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Note in `about.resume_overrides` what changed values of the run itself: resuming it again needs that again."""
    elsewhere = (*LOCATION_KEYS, "resume", "hydra", "launchers", "search")
    keys = {
        text: override.key_or_group.replace("/", ".")
        for text, override in zip(overrides, parse(overrides), strict=True)
    }
    given = [text for text, key in keys.items() if _may_change(key, merged) and key.split(".")[0] not in elsewhere]
    with open_dict(merged):
        OmegaConf.update(merged, "about.resume_overrides", given, merge=False)
    return merged


def _may_change(key: str, cfg: DictConfig) -> bool:
    """Whether a command may give a run another value of this key when it resumes it."""
    return is_neutral(key) or (key == THREADS and not threads_change_result(cfg))


def _set_name(cfg: DictConfig, key: str, value: Any) -> None:
    """Set the name of the run or of the sweep to that of its folder, and note the whole name if it is longer."""
    name = check_name(key, value)
    cfg[key] = folder_name(name)
    if cfg[key] != name:
        cfg.about[key] = name


def _about(cfg: DictConfig, overrides: Sequence[str], in_sweep: bool, swept_keys: Sequence[str]) -> dict[str, Any]:
    """Return the entries of `about` in conf/config.yaml; DATA and INIT are set already.

    Values are written as the composed config prints them, so that `1e-6` becomes `1e-06`.
    """
    values: dict[str, Any] = {}
    for override in parse(overrides):
        key = override.key_or_group
        if is_neutral(key.replace("/", ".")) and not (is_place(key) and key in swept_keys):
            continue
        value = OmegaConf.select(cfg, key)
        if override.is_delete():
            values[key] = "removed"
        elif isinstance(override.value(), dict):
            values |= dict(leaves(OmegaConf.to_container(value, resolve=True), key))
        elif value is None or OmegaConf.is_dict(value):
            values[key] = ",".join(choices(override))
        else:
            values[key] = normalize_number(value)
    ordered = sorted(values, key=lambda key: key not in swept_keys)
    texts = {key: str(values[key]).replace("${", "\\${") for key in ordered}
    title = " ".join(f"{_short_key(key, swept_keys)}={text}" for key, text in texts.items() if key in swept_keys)
    return {
        "data": OmegaConf.select(cfg, DATA),
        "init": OmegaConf.select(cfg, INIT),
        "device": OmegaConf.select(cfg, DEVICE),
        "identity": run_identity(cfg),
        "sweep": "${sweep}",
        "run": "${run}",
        "in_sweep": in_sweep,
        "title": title or None,
        "left_out": OmegaConf.to_container(OmegaConf.select(cfg, LEFT_OUT) or OmegaConf.create({})),
        "full_warmup": OmegaConf.select(cfg, FULL_WARMUP),
        "resume_overrides": [],
        "overrides": [f"{key}={text}" for key, text in texts.items()],
    }


def _short_key(key: str, keys: Sequence[str]) -> str:
    """Return the shortest ending of a dotted key that no other of `keys` has: MLflow's tables show 20 letters."""
    parts = key.split(".")
    endings = [".".join(parts[-number:]) for number in range(1, len(parts) + 1)]
    others = [f".{other}" for other in keys if other != key]
    return next((ending for ending in endings if not any(other.endswith(f".{ending}") for other in others)), key)


def _load(folder: str) -> DictConfig:
    """Return the stored config of a run, with a warning if it was edited since the run began."""
    stored = run_folder.load(folder)
    noted, identity = OmegaConf.select(stored, "about.identity"), run_identity(stored)
    if noted not in (None, identity):
        log.warning(
            "%s was edited, or written by other code: it notes the identity %s, and its values have %s. The run goes "
            "on with these values.",
            Path(stored.folder) / run_folder.CONFIG,
            noted,
            identity,
        )
    return stored


def _resume_folder(cfg: DictConfig, given_keys: Sequence[str]) -> DictConfig:
    """Return the config of the run in the folder that `resume=` names, with the neutral values of this command."""
    if "init" in given_keys:
        raise InputError(f"init={cfg.init} begins a new run, and resume={cfg.resume} resumes one. Give one of them.")
    if located := [key for key in given_keys if key in LOCATION_KEYS]:
        raise InputError(f"resume={cfg.resume} already says where the run lies. Leave out {', '.join(located)}.")
    stored = _load(str(cfg.resume))
    compared = None if "experiment" in given_keys else [*given_keys]  # an experiment's file may set any key
    if compared and {STEPS, EPOCHS} & {*compared}:  # each takes the place of the other
        compared += [STEPS, EPOCHS]
    differences = [*_differences(stored, cfg, compared), *_other_warmup(stored, cfg, given_keys)]
    _refuse(differences, cfg.resume, "Leave these out, or start a new run with them.")
    merged = _merge(stored, cfg, [*given_keys, "resume"])
    refuse_changed(merged, Path(merged.folder))
    return merged


def _resume_name(cfg: DictConfig, given_keys: Sequence[str], known_data: dict[Path, str] | None) -> DictConfig:
    """Return the config of the existing run that `run=` names, with the neutral values of this command."""
    stored = _load(cfg.folder)
    differences = [*_differences(stored, cfg, None), *_other_warmup(stored, cfg, given_keys)]
    _refuse(differences, cfg.folder, "Give another run=<name>, or the same values.")
    merged = _merge(stored, cfg, [*given_keys, *LOCATION_KEYS])
    refuse_changed(merged, Path(merged.folder), known_data)
    return merged


def _merge(stored: DictConfig, cfg: DictConfig, keys: Sequence[str]) -> DictConfig:
    """Return a copy of `stored` in which the neutral keys among `keys` have the values of `cfg`.

    Top-level neutral keys that `stored` lacks are added from `cfg`.
    """
    merged, raw = stored.copy(), OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    missing = [str(key) for key in raw if key not in stored]
    if stored.get("about") and raw.get("about"):
        missing += [f"about.{key}" for key in ("sweep", "run") if key not in stored.about]
    may_change = [key for key in keys if _may_change(key, cfg)]
    with open_dict(merged):
        for key in [*may_change, *filter(is_neutral, missing)]:
            value: Any = raw
            for part in key.split("."):
                value = value[part]
            OmegaConf.update(merged, key, value, merge=False)
    return merged


def _differences(stored: DictConfig, cfg: DictConfig, keys: Sequence[str] | None) -> list[str]:
    """Describe every value that can change the result and differs, below `keys` or, if None, anywhere.

    A key counts as different only if both its raw and its resolved value differ. So if `a: ${b}` changes because `b`
    changed, only `b` is reported. On a GPU the number of threads is none of these values, wherever the run began.
    """
    ignored = {DATA, THREADS} if OmegaConf.select(cfg, DEVICE) == "gpu" else {DATA}
    old, new = result_values(stored), result_values(cfg)
    raw_old, raw_new = (dict(leaves(OmegaConf.to_container(config, resolve=False))) for config in (stored, cfg))
    differences = []
    for key in sorted(old.keys() | new.keys()):
        is_compared = keys is None or any(key == given or key.startswith(f"{given}.") for given in keys)
        if key not in ignored and is_compared and _differs(old, new, key) and _differs(raw_old, raw_new, key):
            differences.append(f"{key} is {_as_text(old, key)} in the run and {_as_text(new, key)} in this command")
    return differences


def _other_warmup(stored: DictConfig, cfg: DictConfig, given_keys: Sequence[str]) -> list[str]:
    """Describe a warm-up of the command that the run had to shorten: for the identity both are the same."""
    if WARMUP not in given_keys or OmegaConf.select(cfg, WARMUP) != OmegaConf.select(stored, FULL_WARMUP):
        return []
    values = [OmegaConf.select(config, WARMUP) for config in (stored, cfg)]
    return [f"{WARMUP} is {values[0]} in the run, which is too short for {values[1]}"]


def _differs(values: Mapping[str, Any], others: Mapping[str, Any], key: str) -> bool:
    return values.get(key, _ABSENT) != others.get(key, _ABSENT)


def _as_text(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False, default=str) if key in values else "absent"


def _refuse(differences: Sequence[str], folder: str, remedy: str) -> None:
    if differences:
        raise all_problems(f"The run in {folder} was made with another config", differences, remedy)
