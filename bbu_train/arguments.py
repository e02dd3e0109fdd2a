"""`key=value` words of the sister programs, which are not Hydra applications: `checkpoint=best` is a value there."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.errors import InputError, all_problems
from bbu_train.override_keys import kind_problem, leaves


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
