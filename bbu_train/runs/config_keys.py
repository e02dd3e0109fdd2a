"""Checks of single overrides: their spelling, the keys they name, and the types of their values.

Hydra on its own accepts `+typo=1`, recommends `+` for every misspelt key, and lets `steps=ten` through.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from antlr4.error.Errors import LexerNoViableAltException
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException

from bbu_train.errors import InputError, all_problems
from bbu_train.runs import usual_names
from bbu_train.runs.length import EPOCHS
from bbu_train.runs.settings import AUTO, AUTO_SETTINGS
from bbu_train.runtime.nested import leaves

OPEN_MAPPINGS = ("optimizer.groups",)
"""Mappings in which users name the entries: `+` may add an entry, and `~` may remove one."""
NUMBERS_OR_NULL = {EPOCHS: 3}
"""Keys that are null in conf/, each with a number that it may be."""


def refuse(problems: Sequence[str]) -> None:
    """Raise one InputError that lists every problem, if there is any."""
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise all_problems("This command", problems, "--help says which keys and choices there are.")


def parse(texts: Sequence[str], config_loader: Any = None) -> list[Override]:
    """Parse overrides by Hydra's grammar. Raises InputError that says how to quote what the grammar cannot read."""
    parser, overrides, problems = OverridesParser.create(config_loader), [], []
    for text in texts:
        try:
            override = parser.parse_override(text)
            override.config_loader = config_loader
            overrides.append(override)
        except HydraException as error:
            problems.append(_parse_problem(parser, text, error))
    refuse(problems)
    return overrides


def _parse_problem(parser: OverridesParser, text: str, error: HydraException) -> str:
    """Say why `text` cannot be read, and how to quote it if that helps."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text!r} is not of the form key=value."
    quoted = f"{key}={QuotedString(value, Quote.double).with_quotes()}"
    cause = error.__cause__
    where = f" at {text[cause.startIndex]!r}" if isinstance(cause, LexerNoViableAltException) else ""
    try:
        parser.parse_override(quoted)
    except HydraException:
        return f"{text} cannot be read{where}: {error}"
    return f"{text} cannot be read{where}. Quote the value, and the whole against the shell: '{quoted}'"


def choices(override: Override) -> list[str]:
    """Return the choices that an override of a config group names: several in a sweep, or if it gives a list."""
    values = (
        [plain(value) for value in override.sweep_iterator()] if override.is_sweep_override() else [override.value()]
    )
    flat = [choice for value in values for choice in (value if isinstance(value, list) else [value])]
    return ["null" if choice is None else str(choice) for choice in flat]


def plain(value: Any) -> Any:
    """Return the text of a quoted string; any other value as it is."""
    return value.text if isinstance(value, QuotedString) else value


def problems_of(override: Override, config: Mapping[str, Any], group_choices: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the override of a key, given the `config` that the chosen groups compose."""
    key = override.key_or_group
    if override.type is not OverrideType.CHANGE:
        return _problems_of_addition(override, config, group_choices)
    exists, default = _look_up(config, key)
    if not exists:
        return [unknown_key(key, config, group_choices)]
    if override.is_range_sweep() or override.is_interval_sweep():
        values = [0]
    elif override.is_sweep_override():
        values = list(map(plain, override.sweep_iterator()))
    else:
        values = [override.value()]
    return [problem for value in values for problem in _problems_of_value(key, default, value, config, group_choices)]


def _problems_of_addition(override: Override, config: Mapping[str, Any], group_choices: Mapping[str, Any]) -> list[str]:
    """Check `+`, `++` and `~`: a new entry of an open mapping must have the keys of the other entries."""
    key, text = override.key_or_group, override.get_key_element()
    if key.startswith("hydra."):
        return []
    exists, _ = _look_up(config, key)
    sign = text.removesuffix(key)
    owner = next((mapping for mapping in OPEN_MAPPINGS if key.startswith(f"{mapping}.")), None)
    if owner is None:
        return [_sign_on_fixed_key(override, sign, config, group_choices)]
    if override.is_delete():
        return [] if exists else [unknown_key(key, config, group_choices)]
    if exists:
        return [f"{text}: {key} exists. Leave out the {sign}."]
    entries = _look_up(config, owner)[1] or {}
    entry, _, field = key.removeprefix(f"{owner}.").partition(".")
    known = {name for value in entries.values() if isinstance(value, Mapping) for name in value}
    given = {field} if field else set(value) if isinstance(value := override.value(), Mapping) else set()
    if entry in entries or not given <= known:
        unknown = ", ".join(sorted(given - known)) or field
        return [
            f"{text}: {unknown} is not a key of an entry of {owner}. {_did_you_mean(unknown, known)}"
            f"Its keys: {', '.join(sorted(known))}."
        ]
    return []


def _sign_on_fixed_key(
    override: Override, sign: str, config: Mapping[str, Any], group_choices: Mapping[str, Any]
) -> str:
    """Say what to give in place of `+key=...` or `~key`, where the keys are fixed."""
    key, text = override.key_or_group, override.get_key_element()
    exists, default = _look_up(config, key)
    if not exists:
        return f"{text}: {sign} works only under {', '.join(OPEN_MAPPINGS)}. {unknown_key(key, config, group_choices)}"
    if override.is_delete():
        value = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        kept = f" ({value})" if isinstance(value, str | int | float) else ""
        return f"{text}: {key} cannot be removed. Leave out {text}, and {key} keeps its value{kept}, or give {key}=..."
    if override.is_sweep_override() or not (wrong := type_problem(key, default, override.value())):
        line = str(override.input_line)
        return f"{line}: the config has {key} already. Leave out the {sign}: {line.removeprefix(sign)}"
    return f"{sign}{wrong} Leave out the {sign}, too: the config has {key} already."


def incomplete_entries(
    config: Mapping[str, Any], plain: Mapping[str, Any], group_choices: Mapping[str, Any]
) -> list[str]:
    """Say which entries of open mappings are neither in the `plain` config nor whole: they would change nothing."""
    problems = []
    for owner in OPEN_MAPPINGS:
        known, group = _look_up(plain, owner)[1] or {}, owner.partition(".")[0]
        fields = {str(name) for entry in known.values() if isinstance(entry, Mapping) for name in entry}
        names, needed = ", ".join(map(str, known)), ", ".join(sorted(fields))
        for name, entry in (_look_up(config, owner)[1] or {}).items():
            if name not in known and isinstance(entry, Mapping) and fields - set(entry):
                values = " ".join(f"{key}={value}" for key, value in leaves(entry, f"{owner}.{name}"))
                problems.append(
                    f"{values}: {group}={group_choices.get(group)} has no {name} in {owner}, which are: {names}. Take "
                    f"another {group}; a new entry needs {needed}."
                )
    return problems


def _problems_of_value(
    key: str, default: Any, value: Any, config: Mapping[str, Any], group_choices: Mapping[str, Any]
) -> list[str]:
    """Check a value against the type of its default. Text allows any value, and so does null but in NUMBERS_OR_NULL."""
    if value is None or is_interpolation(value) or is_interpolation(default):
        return []
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping):
            names = ", ".join(name for name in map(str, default) if not name.startswith("_"))
            return [f"{key}={value}: {key} is a mapping. Give one of its keys, {key}.<key>=...: {names}."]
        return [
            problem
            for name, entry in value.items()
            for problem in _problems_of_entry(f"{key}.{name}", entry, config, group_choices)
        ]
    problem = type_problem(key, default, value)
    return [problem] if problem else []


def _problems_of_entry(key: str, value: Any, config: Mapping[str, Any], group_choices: Mapping[str, Any]) -> list[str]:
    exists, default = _look_up(config, key)
    if not exists:
        return [unknown_key(key, config, group_choices)]
    return _problems_of_value(key, default, value, config, group_choices)


def type_problem(key: str, default: Any, value: Any) -> str | None:
    """Return a problem if the default is a number or a bool and the value is not.

    Where a number is the default, a list is accepted too, such as a range. AUTO_SETTINGS may also be "auto".
    """
    default = NUMBERS_OR_NULL.get(key, default)
    if value is None or is_interpolation(value) or not (key in AUTO_SETTINGS or isinstance(default, int | float)):
        return None
    if key in AUTO_SETTINGS:
        example = AUTO_SETTINGS[key]
        if value == AUTO or type(value) is type(example):
            return None
        kind = "true or false" if isinstance(example, bool) else "a number" if isinstance(example, int) else "a word"
        return f"{key}={value}: {key} is auto or {kind}, such as {str(example).lower()}."
    if value == "":
        return f"{key}= has no value. Give one, such as {key}={str(default).lower()}, or leave it out."
    if isinstance(default, bool):
        return None if isinstance(value, bool) else f"{key}={value}: {key} is true or false."
    is_wrong = isinstance(value, bool) or not isinstance(value, (int, float, list))
    return f"{key}={value}: {key} is a number, such as {default}." if is_wrong else None


def is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def unknown_key(key: str, config: Mapping[str, Any], group_choices: Mapping[str, Any]) -> str:
    """Say that `key` does not exist, which key it usually names or is near to, and which exist beside it."""
    parts = key.split(".")
    parent: list[str] = []
    while (node := _look_up(config, ".".join([*parent, parts[len(parent)]])))[0] and isinstance(node[1], Mapping):
        parent.append(parts[len(parent)])
    owner = ".".join(parent)
    first_wrong = ".".join(parts[: len(parent) + 1])
    if isinstance(_look_up(config, first_wrong)[1], list):
        return f"{key}: {first_wrong} is a list, which is overridden whole: {first_wrong}=[...]."
    beside = _look_up(config, owner)[1] if parent else config
    has_near = parent and difflib.get_close_matches(key.rpartition(".")[2], map(str, beside or {}), n=1)
    if owner not in OPEN_MAPPINGS and not has_near and (usual := usual_names.usual_name_of(key)) is not None:
        return f"{key} is not a key of the config. {usual.answer}"
    choice = f" ({parent[0]}={group_choices[parent[0]]})" if parent and parent[0] in group_choices else ""
    names = ", ".join(str(name) for name in beside if not str(name).startswith("_") and name != "hydra") or "no keys"
    hint = f" A new entry is added with +{key}=..." if owner in OPEN_MAPPINGS else ""
    known = [name for name, _ in leaves(config) if not name.startswith("hydra.")]
    known += [name for name in config if name != "hydra"]
    question = _did_you_mean(key, known)
    return f"{key} is not a key of the config. {question}{owner or 'The config'}{choice} has: {names}.{hint}"


def unknown_choice(group: str, choice: str, options: Sequence[str]) -> str:
    """Say that a config group has no such choice, which one is near, and which exist."""
    usual = usual_names.choice_of(group, choice, options)
    question = f"Did you mean {usual}? " if usual else _did_you_mean(choice, options)
    return f"{group}={choice} is not a choice. {question}{group} can be: {', '.join(options)}."


def _did_you_mean(name: str, known_names: Iterable[str]) -> str:
    """Ask for the nearest known names: those with the same last part, or one that is spelt alike."""
    known = sorted(set(known_names))
    last = name.rpartition(".")[2]
    same_last = [key for key in known if key != name and key.rpartition(".")[2] == last]
    near = difflib.get_close_matches(name, same_last or known, n=3) or same_last[:3]
    if not near:
        by_last = {key.rpartition(".")[2]: key for key in reversed(known)}
        near = [by_last[word] for word in difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)]
    return f"Did you mean {' or '.join([', '.join(near[:-1]), near[-1]] if near[1:] else near)}? " if near else ""


def _look_up(config: Any, key: str) -> tuple[bool, Any]:
    """Return whether the dotted key exists, and its value.

    Any key exists below an interpolation, because its value is not known yet. A list has no keys.
    """
    for part in key.split("."):
        if is_interpolation(config):
            return True, config
        if not isinstance(config, Mapping) or part not in config:
            return False, None
        config = config[part]
    return True, config
