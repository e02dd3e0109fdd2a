"""`key=value` words of the sister programs, which are not Hydra applications: `checkpoint=best` is a value there."""

import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.cli import main as command_line
from bbu_train.errors import InputError, all_problems
from bbu_train.ops.numbers import is_count
from bbu_train.runs.config_keys import kind_problem, leaves


def call(
    program: Callable[[DictConfig], None],
    words: Sequence[str],
    usage: str,
    defaults: Mapping[str, Any],
    paths: Sequence[str],
) -> int:
    """Run `program` with the values of a command, or show `usage`; give the exit code (`command_line.run`).

    The values of `paths` are texts, whatever they look like.
    """
    if {"--help", "-h"} & set(words):
        print(usage, end="")
        return 0
    try:
        program(read([_quoted(word, paths) for word in words], defaults))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it ends
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return command_line.report(error)
    return 0


def _quoted(word: str, paths: Sequence[str]) -> str:
    """Bare, a path such as `*.jpg` or `2026_01` would mean something else in YAML."""
    key, equals, value = word.partition("=")
    return f"{key}={json.dumps(value, ensure_ascii=False)}" if equals and key in paths else word


def read(words: Sequence[str], defaults: Mapping[str, Any]) -> DictConfig:
    """`defaults` with the values that `words` give. Raises InputError that lists every word that is wrong."""
    problems = [f"{word!r} is not of the form key=value." for word in words if "=" not in word]
    try:
        given = OmegaConf.from_cli([word for word in words if "=" in word])
        plain = dict(leaves(OmegaConf.to_container(given, resolve=True))) if given else {}
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"{' '.join(words)} cannot be read: {error}") from error
    problems += [problem for key, value in plain.items() if (problem := _problem(key, value, defaults))]
    if problems:
        raise all_problems("This command", problems, "--help says which keys there are.")
    return OmegaConf.merge(OmegaConf.create(dict(defaults), flags={"struct": True}), given)


def _problem(key: str, value: Any, defaults: Mapping[str, Any]) -> str | None:
    if key in defaults:
        return kind_problem(key, defaults[key], value)
    near = difflib.get_close_matches(key, defaults, n=1)
    return f"{key} is no key. {f'Did you mean {near[0]}? ' if near else ''}There are: {', '.join(defaults)}."


def absent(given: DictConfig, needed: Mapping[str, str]) -> list[str]:
    """What to say of each key of `needed` without a value; its text says what the key is to name."""
    return [f"Say {key}=..., {what}." for key, what in needed.items() if not given[key]]


def wrong_choices(given: DictConfig, choices: Mapping[str, Sequence[str | None]]) -> list[str]:
    """What to say of each value that is none of its key's choices; None among them lets a key be left out."""
    known = {key: [name for name in names if name is not None] for key, names in choices.items()}
    return [
        f"{key}={given[key]}: {key} is {', '.join(names[:-1])} or {names[-1]}."
        for key, names in known.items()
        if given[key] not in choices[key]
    ]


def wrong_counts(given: DictConfig, least: Mapping[str, int]) -> list[str]:
    """What to say of each value that is no whole number, or less than the `least` of its key."""
    return [
        f"{key}={given[key]}: {key} is a whole number of at least {limit}."
        for key, limit in least.items()
        if not is_count(given[key], limit)
    ]


def wrong_checkpoint(checkpoint: object) -> list[str]:
    if checkpoint in ("best", "last") or is_count(checkpoint, 0):
        return []
    return [f"checkpoint={checkpoint}: checkpoint is best, last or a step."]


def new_folder(out: str) -> Path:
    """`out` as a path, after a check that nothing of another command lies there."""
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out={out} holds something. Name a new folder, so that nothing of two commands is mixed.")
    return folder
