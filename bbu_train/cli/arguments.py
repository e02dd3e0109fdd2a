"""The `key=value` arguments of evaluate, predict, compare and export.

These programs are not Hydra applications: there, `checkpoint=best` would choose from the config group of that name.
"""

import difflib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.cli.main import close_stdout, report_error
from bbu_train.errors import INTERRUPTED, InputError, all_problems
from bbu_train.ops.numbers import is_count
from bbu_train.runs import names, usual_names
from bbu_train.runs.config_keys import type_problem
from bbu_train.runtime import environment
from bbu_train.runtime.nested import leaves
from bbu_train.runtime.writable import require_writable

# Characters that YAML takes as escapes only; lone surrogates stand for bytes that are no UTF-8.
NOT_IN_YAML = re.compile("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

MAX_NAME_BYTES = 255  # of a file or folder, in the file systems of Linux


def run_program(
    program: Callable[[DictConfig], None],
    words: Sequence[str],
    usage: str,
    defaults: Mapping[str, Any],
) -> int:
    """Run `program` with the values of a command, or show `usage`. Return the exit code (`cli.main.run_command`)."""
    if {"--help", "-h"} & set(words):
        print(usage, end="")
        return 0
    environment.set_defaults()
    try:
        program(parse([_quote_text(word) for word in words], defaults))
    except BrokenPipeError:
        close_stdout()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return report_error(error)
    return 0


def _quote_text(word: str) -> str:
    """Quote the value of a name or a path for YAML, where a bare `*.jpg` is an alias and a bare `2026_01` a number.

    Characters beyond U+FFFF stay as they are: YAML reads JSON's escape of one as two halves.
    """
    key, equals, value = word.partition("=")
    if not equals or not names.is_text(key) or (text := names.typed_text(value)) is None:
        return word
    escaped = text.replace("${", "\\${")
    quoted = json.dumps(escaped, ensure_ascii=False)
    escape = NOT_IN_YAML.sub(lambda found: "\\u" + format(ord(found[0]), "04x"), quoted)
    return f"{key}={escape}"


def parse(arguments: Sequence[str], defaults: Mapping[str, Any]) -> DictConfig:
    """Return `defaults` with the values that `arguments` give. Raises InputError that lists every wrong one."""
    problems = [f"{argument!r} is not of the form key=value." for argument in arguments if "=" not in argument]
    try:
        given = OmegaConf.from_cli([argument for argument in arguments if "=" in argument])
        values = dict(leaves(OmegaConf.to_container(given, resolve=True))) if given else {}
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"{' '.join(arguments)} cannot be read: {error}") from error
    problems += [problem for key, value in values.items() if (problem := _problem(key, value, defaults))]
    if problems:
        raise all_problems("This command", problems, "--help says which keys there are.")
    options = OmegaConf.create({})
    for key, value in defaults.items():
        OmegaConf.update(options, key, value)
    OmegaConf.set_struct(options, True)
    merged = OmegaConf.merge(options, given)
    assert isinstance(merged, DictConfig)
    return merged


def _problem(key: str, value: Any, defaults: Mapping[str, Any]) -> str | None:
    if key in defaults:
        return type_problem(key, defaults[key], value)
    near = usual_names.program_key_of(key, defaults) or next(iter(difflib.get_close_matches(key, defaults, n=1)), None)
    return f"{key} is not a key. {f'Did you mean {near}? ' if near else ''}There are: {', '.join(defaults)}."


def missing_values(values: DictConfig, required: Mapping[str, str]) -> list[str]:
    """Return a problem for each key of `required` without a value. Its text says what the key names."""
    return [f"Say {key}=..., {what}." for key, what in required.items() if not values[key]]


def wrong_choices(values: Mapping[str, Any], choices: Mapping[str, Sequence[str | None]]) -> list[str]:
    """Return a problem for each value that is none of its key's choices. None among them makes a key optional."""
    names = {key: [name for name in options if name is not None] for key, options in choices.items()}
    return [
        f"{key}={values[key]}: {key} is {', '.join(options[:-1])} or {options[-1]}."
        for key, options in names.items()
        if values[key] not in choices[key]
    ]


def wrong_counts(values: Mapping[str, Any], minimum: Mapping[str, int]) -> list[str]:
    """Return a problem for each value that is no whole number of at least the `minimum` of its key."""
    return [
        f"{key}={values[key]}: {key} is a whole number of at least {limit}."
        for key, limit in minimum.items()
        if not is_count(values[key], limit)
    ]


def wrong_checkpoint(checkpoint: object) -> list[str]:
    if checkpoint in ("best", "last") or is_count(checkpoint):
        return []
    return [f"checkpoint={checkpoint}: checkpoint is best, last or a step."]


def new_folder(out: str) -> Path:
    """Return `out` as a path. Raises InputError if something lies there, because files of two commands would mix."""
    folder = writable_folder("out", out)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"out={out} is not empty. Choose a new folder, so that the files of two commands do not mix.")
    return folder


def writable_folder(key: str, value: str) -> Path:
    """Return the folder that a key gives. Raises InputError if it cannot be made or nothing may be written there."""
    folder = Path(value).expanduser()
    if any(len(part.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES for part in folder.parts):
        raise InputError(f"{key}={value}: a folder's name has at most {MAX_NAME_BYTES} bytes.")
    require_writable(key, folder)
    return folder
