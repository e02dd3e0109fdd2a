"""The command that trains a cell again."""

import shlex
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.cli import overrides
from bbu_train.cli.main import config_folder
from bbu_train.compare.cells import SEED, RankedCell
from bbu_train.compare.sweep import SweepRun
from bbu_train.errors import InputError
from bbu_train.runs import config_keys, identity

NEEDED = ("data.root",)
"""Keys that cannot change the result, but without which nothing can be trained."""


def command(cell: RankedCell) -> tuple[str, list[str]]:
    """`python -m bbu_train ...` for every seed of the cell, and the keys that this version no longer has.

    It begins with what was typed, or with the choices of config groups, and adds every key in which what that composes
    still differs from the stored config. So it holds however the run was started.
    """
    run = cell.runs[0].run
    typed, composed = _start(run)
    wanted, gone = _missing(run, composed)
    given = {config_keys.parse([word])[0].key_or_group: word for word in typed} | wanted
    seeds = sorted({int(scored.run.values.get(SEED, 0)) for scored in cell.runs})
    given.pop(SEED, None)
    words = [*given.values(), f"{SEED}={','.join(map(str, seeds))}"]
    start = ["python", "-m", "bbu_train", *(["-m"] if len(seeds) > 1 else [])]
    return shlex.join([*start, *words]), gone


def _start(run: SweepRun) -> tuple[list[str], DictConfig]:
    """What was typed with the choices that it does not say, or those alone, and what they compose."""
    typed = _typed(run)
    for words in (typed, []):
        composed = _composed(words)
        if composed is None:  # a key or a choice was renamed since
            continue
        chosen = composed.hydra.runtime.choices
        others = [
            group for group in run.choices if chosen.get(group) != run.choices[group] and not identity.is_neutral(group)
        ]
        chosen_words = [*words, *(f"{group}={run.choices[group]}" for group in others)]
        if (composed := _composed(chosen_words)) is not None:
            return chosen_words, composed
    composed = _composed([])
    assert composed is not None, "conf/ composes without overrides"
    return [], composed


def _typed(run: SweepRun) -> list[str]:
    """Overrides of the recorded command that stand for one value and say what is trained, not where or how."""
    words = []
    for word in run.command[1:]:
        if "=" not in word or word.startswith("-"):
            continue
        try:
            (override,) = config_keys.parse([word])
        except InputError:
            continue
        key = override.key_or_group
        neutral = identity.is_neutral(key.replace("/", ".")) and key not in NEEDED
        if not (override.is_sweep_override() or neutral):
            words.append(word)
    return words


def _composed(words: Sequence[str]) -> DictConfig | None:
    """The config of these overrides; None if this version has no such."""
    try:
        with initialize_config_dir(str(config_folder()), version_base=overrides.VERSION_BASE):
            return compose(overrides.CONFIG_NAME, overrides=list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        return None


def _missing(run: SweepRun, composed: DictConfig) -> tuple[dict[str, str], list[str]]:
    """Overrides that make `composed` the run's config, by key; and the run's keys that are no more."""
    have = dict(config_keys.leaves(OmegaConf.to_container(composed, resolve=False)))
    words, gone = {}, []
    for key, value in run.raw.items():
        neutral = identity.is_neutral(key) and key not in NEEDED
        if neutral or key == SEED or (key in have and have[key] == value):
            continue
        opened = any(key.startswith(f"{mapping}.") for mapping in config_keys.OPEN_MAPPINGS)
        if key in have:
            words[key] = f"{key}={_spelt(value)}"
        elif opened:
            words[key] = f"+{key}={_spelt(value)}"
        else:
            gone.append(key)
    return words | _taken_away(run, composed), gone


def _taken_away(run: SweepRun, composed: DictConfig) -> dict[str, str]:
    """Entries of open mappings that the run does not have."""
    opened = config_keys.OPEN_MAPPINGS
    names = [f"{mapping}.{name}" for mapping in opened for name in OmegaConf.select(composed, mapping) or {}]
    entries = [name for name in names if not any(f"{key}.".startswith(f"{name}.") for key in run.raw)]
    return {entry: f"~{entry}" for entry in entries}


def _spelt(value: Any) -> str:
    """`value` in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_spelt, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_spelt(entry)}" for key, entry in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    try:
        (override,) = config_keys.parse([f"key={value}"])
        plain = not override.is_sweep_override() and override.value() == value
    except InputError:
        plain = False
    return value if plain else QuotedString(value, Quote.double).with_quotes()
