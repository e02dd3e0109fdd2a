"""The command that trains a candidate again."""

import shlex
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.cli import overrides
from bbu_train.compare.candidates import SEED, Candidate
from bbu_train.compare.sweep import SweepRun
from bbu_train.errors import InputError
from bbu_train.runs import config_keys, identity
from bbu_train.runs.length import STEPS, decided_by_epochs
from bbu_train.runs.names import hydra_text
from bbu_train.runtime.config_folder import config_folder
from bbu_train.runtime.nested import leaves


def training_command(candidate: Candidate) -> tuple[str, list[str]]:
    """Return `python -m bbu_train ...` for all seeds of the candidate, and the keys that this version no longer has.

    The command starts from the overrides that the user typed or, if those no longer compose, from the recorded group
    choices. It then adds an override for every key whose composed value differs from the run's config.yaml. So it
    reproduces the config however the run was started.
    """
    run = candidate.runs[0].run
    typed, composed = _starting_overrides(run)
    differences, removed_keys = _differences(run, composed)
    words = {config_keys.parse([word])[0].key_or_group: word for word in typed} | differences
    words.pop(SEED, None)
    seeds = sorted({int(each.run.resolved_values.get(SEED, 0)) for each in candidate.runs})
    program = ["python", "-m", "bbu_train", *(["-m"] if len(seeds) > 1 else [])]
    return shlex.join([*program, *words.values(), f"{SEED}={','.join(map(str, seeds))}"]), removed_keys


def _starting_overrides(run: SweepRun) -> tuple[list[str], DictConfig]:
    """Return overrides to start from, and the config that they compose.

    Try, in this order, the typed overrides plus the recorded group choices that they do not set, the recorded choices
    alone, and no overrides. Return the first that composes.
    """
    for words in (_typed_overrides(run), []):
        composed = _compose(words)
        if composed is None:  # a key or a choice was renamed since the run
            continue
        choices = composed.hydra.runtime.choices
        groups = [
            group
            for group in run.choices
            if choices.get(group) != run.choices[group] and not identity.is_neutral(group)
        ]
        with_choices = [*words, *(f"{group}={run.choices[group]}" for group in groups)]
        composed = _compose(with_choices) if groups else composed
        if composed is not None:
            return with_choices, composed
    composed = _compose([])
    assert composed is not None, "conf/ composes without overrides"
    return [], composed


def _typed_overrides(run: SweepRun) -> list[str]:
    """Return the overrides of the recorded command that have one value and say what is trained, not where or how."""
    words = []
    for word in run.command[1:]:
        if "=" not in word or word.startswith("-"):
            continue
        try:
            (override,) = config_keys.parse([word])
        except InputError:
            continue
        if not (override.is_sweep_override() or _is_neutral(override.key_or_group)):
            words.append(word)
    return words


def _is_neutral(key: str) -> bool:
    """Return whether the command can leave the key, or the config group, out: roots are needed to find the data."""
    return identity.is_neutral(key.replace("/", ".")) and not identity.is_place(key)


def _compose(words: Sequence[str]) -> DictConfig | None:
    """Compose the config; None if this version lacks a key or a choice of these overrides."""
    try:
        loader = overrides.config_loader(config_folder(), None)
        return loader.load_configuration(overrides.CONFIG_NAME, list(words), RunMode.RUN)
    except (HydraException, OmegaConfBaseException):
        return None


def _differences(run: SweepRun, composed: DictConfig) -> tuple[dict[str, str], list[str]]:
    """Return overrides, by key, that turn `composed` into the run's config; and the run's keys that no longer exist."""
    values = dict(leaves(OmegaConf.to_container(composed, resolve=False)))
    words, removed_keys = {}, []
    for key, value in run.unresolved_values.items():
        is_counted = key == STEPS and decided_by_epochs(run.config)
        if _is_neutral(key) or key == SEED or is_counted or (key in values and values[key] == value):
            continue
        if key in values:
            words[key] = f"{key}={_to_hydra(value)}"
        elif any(key.startswith(f"{mapping}.") for mapping in config_keys.OPEN_MAPPINGS):
            words[key] = f"+{key}={_to_hydra(value)}"
        else:
            removed_keys.append(key)
    return words | _deletions(run, composed), removed_keys


def _deletions(run: SweepRun, composed: DictConfig) -> dict[str, str]:
    """Return overrides that delete the entries of open mappings which the run does not have."""
    mappings = config_keys.OPEN_MAPPINGS
    entries = [f"{mapping}.{name}" for mapping in mappings for name in OmegaConf.select(composed, mapping) or {}]
    missing = [
        entry for entry in entries if not any(f"{key}.".startswith(f"{entry}.") for key in run.unresolved_values)
    ]
    return {entry: f"~{entry}" for entry in missing}


def _to_hydra(value: Any) -> str:
    """Write `value` in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_to_hydra, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_to_hydra(entry)}" for key, entry in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    return hydra_text(value)
