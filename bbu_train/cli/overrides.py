"""Checks of a whole command before Hydra composes its config: config groups, sweeps, experiments and keys."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import OmegaConf

from bbu_train.cli.experiments import ExperimentLoader
from bbu_train.errors import InputError
from bbu_train.runs import config_keys, identity, usual_names
from bbu_train.runs import folder as run_folder
from bbu_train.runs.length import EPOCHS, STEPS
from bbu_train.runs.settings import LEFT_OUT
from bbu_train.runtime.nested import leaves

VERSION_BASE = "1.3"
CONFIG_NAME = "config"


class CheckedCommand(NamedTuple):
    """What a command asks for: a sweep or one run, and whether it only shows something of the config or of Hydra."""

    is_sweep: bool
    only_shows: bool


def check(arguments: Sequence[str], folder: Path) -> CheckedCommand:
    """Return what the command asks for.

    Raises an InputError with all problems of syntax; if there are none, of groups; if there are none, of keys.
    """
    parser = get_args_parser()
    parser.prog = "python -m bbu_train"
    flags, unknown_options = parser.parse_known_args(list(arguments))
    config_keys.refuse(usual_names.option_problems(unknown_options))
    only_shows = bool(flags.shell_completion or flags.cfg or flags.info or flags.help or flags.hydra_help)
    if flags.config_path:
        raise InputError("--config-path would replace all of conf/. Add a folder of your own with --config-dir.")
    if flags.shell_completion or (only_shows and not flags.overrides):  # composing a config takes a quarter of a second
        return CheckedCommand(is_sweep=False, only_shows=True)
    if flags.multirun and (flags.cfg or flags.info):
        raise InputError("--cfg and --info show one run: leave out -m, and give each key one value.")
    loader = config_loader(folder, flags.config_dir)
    given = config_keys.parse(flags.overrides, loader)
    if any(override.key_or_group == "hydra.searchpath" for override in given):
        raise InputError("hydra.searchpath: a folder with choices of your own is added by --config-dir FOLDER.")
    groups = [override for override in given if is_group(override, loader)]
    keys = [override for override in given if override not in groups]
    config_keys.refuse(list(_chosen_twice(groups)))
    name = flags.config_name or CONFIG_NAME
    defaults = _compose(loader, name, [])["hydra"]["runtime"]["choices"] if any(map(Override.is_add, groups)) else {}
    config_keys.refuse([problem for override in groups for problem in _group_problems(override, loader, defaults)])

    mode = [str(key.input_line) for key in keys if key.key_or_group == "hydra.mode"]
    sweeping, launching, problems = flags.multirun, False, []
    for chosen in _combinations(groups):
        config = _compose(loader, name, [*chosen, *mode])
        sweeping = sweeping or config["hydra"]["mode"] is RunMode.MULTIRUN
        launching = launching or "launchers" in config
        if "search" in config and "launchers" not in config:
            problems.append("A search starts its trials by a launcher: add -m hydra/launcher=local, or slurm.")
        choices = config["hydra"]["runtime"]["choices"]
        problems += _experiment_problems(loader, name, config)
        problems += [problem for key in keys for problem in config_keys.problems_of(key, config, choices)]
    if launching and not sweeping:
        problems.append("hydra/launcher starts the runs of a sweep and needs -m: without it the run would train here.")
    config_keys.refuse([*(_sweep_problems(given) if sweeping else _single_problems(given)), *problems])
    return CheckedCommand(sweeping, only_shows)


def options_first(arguments: Sequence[str]) -> list[str]:
    """Put options before overrides: Hydra does not accept `seed=1,2 -m steps=10`."""
    return sorted(arguments, key=lambda argument: "=" in argument and not argument.startswith("-"))


def add_choices_of_resumed_run(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command with the group choices of the run that `resume=<folder>` names, and the words that were added.

    Without them `resume=<folder> data.root=/moved` would not compose, because the default data has no such key.
    """
    arguments = list(arguments)
    resume = next((argument for argument in arguments if argument.startswith("resume=")), None)
    if resume is None or any(argument.startswith("experiment=") for argument in arguments):
        return arguments, []
    value = config_keys.parse([resume])[0].value()
    stored = run_folder.choices(value) if isinstance(value, str) else {}
    given = {argument.partition("=")[0] for argument in arguments}
    added = [f"{group}={choice}" for group, choice in stored.items() if group not in given]
    index = arguments.index(resume)
    return [*arguments[:index], *added, *arguments[index:]], added


def config_loader(folder: Path, additional: str | None) -> ExperimentLoader:
    """Return the loader of the configs in `folder`, and in the `additional` folder of a user."""
    hydra.version.setbase(VERSION_BASE)
    setup_globals()
    search_path = create_config_search_path(str(folder))
    if additional is not None:
        path = Path(additional).resolve()
        if not path.is_dir():
            raise InputError(f"--config-dir {additional}: there is no folder {path}.")
        search_path.prepend("command-line", f"file://{path}", SearchPathQuery(provider="schema"))
    return ExperimentLoader(search_path)


def _compose(loader: ConfigLoaderImpl, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the config of these overrides as plain dicts, interpolations unresolved, with Hydra's own part."""
    plain = OmegaConf.to_container(loader.load_configuration(name, list(overrides), RunMode.RUN), resolve=False)
    assert isinstance(plain, dict)
    return plain


def is_group(override: Override, loader: ConfigLoaderImpl) -> bool:
    return "." not in override.key_or_group and bool(loader.get_group_options(override.key_or_group))


def _group_problems(override: Override, loader: ConfigLoaderImpl, chosen: Mapping[str, Any]) -> list[str]:
    group, options = override.key_or_group, loader.get_group_options(override.key_or_group)
    if override.type is OverrideType.DEL:
        return [f"~{group} would leave the config without {group}. {group} can be: {', '.join(options)}."]
    if override.is_add() and group in chosen:
        return [f"{override.input_line}: {group} has a choice already. Leave out the +."]
    if isinstance(override.value(), Mapping):
        return [f"{override.input_line}: {group} is a config group. It can be: {', '.join(options)}."]
    values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
    if any(isinstance(value, list) for value in values):
        return [
            f"{override.input_line}: a run has one choice of {group}. A file of your own may begin with another "
            f"(defaults: [<choice>, _self_]); put it into FOLDER/{group} and give --config-dir FOLDER."
        ]
    unknown = [choice for choice in config_keys.choices(override) if choice not in options]
    return [config_keys.unknown_choice(group, choice, options) for choice in unknown]


def _chosen_twice(groups: Sequence[Override]) -> Iterator[str]:
    """Yield a problem for each group that has several overrides, of which Hydra would take the last."""
    lines: dict[str, list[str]] = {}
    for override in groups:
        lines.setdefault(override.key_or_group, []).append(str(override.input_line))
    for group, given in lines.items():
        if len(given) > 1:
            yield f"{' '.join(given)}: {group} is chosen {len(given)} times. Keep one of them."


def _combinations(groups: Sequence[Override]) -> Iterator[tuple[str, ...]]:
    """Yield every combination of group choices in a sweep, as overrides; usually there is one."""
    options_by_group = [
        [f"{group.get_key_element()}={choice}" for choice in group.sweep_string_iterator()]
        if group.is_discrete_sweep()
        else [str(group.input_line)]
        for group in groups
    ]
    return itertools.product(*options_by_group)


def _single_problems(given: Sequence[Override]) -> list[str]:
    """Return a problem for each override that works only with `-m`."""
    problems = []
    for override in given:
        key, line = override.key_or_group, override.input_line
        if override.is_sweep_override():
            plain = re.sub("[\"']", "", override.get_value_string())
            quoted = f"'{key}=\"{plain}\"'"
            problems.append(
                f"{line}: several values are a sweep and need -m. A list is written [a,b]; a comma inside a text is "
                f"quoted: {quoted}"
            )
    return problems


def _sweep_problems(given: Sequence[Override]) -> list[str]:
    """Return a problem for each override that a sweep cannot have, such as one that gives all cells one folder."""
    swept = [override for override in given if override.is_sweep_override()]
    problems = []
    for override in given:
        key, line = override.key_or_group, override.input_line
        if key == "run" and swept and override not in swept:
            problems.append(
                f"{line} names one run, and a sweep has several. Leave it out: each is named by its config."
            )
        if override in swept and key == "hydra/launcher":
            problems.append(f"{line}: a sweep is started by one launcher.")
        is_decisive = identity.is_place(key) or not identity.is_neutral(key)
        if override in swept and not is_decisive and key not in ("run", "sweep", "resume", "outputs"):
            problems.append(
                f"{line}: {key} does not change a run's identity, so these would be one run in one folder. "
                "Start them one by one, each with its own run=<name>."
            )
    return problems


def _experiment_problems(loader: ConfigLoaderImpl, name: str, config: Mapping[str, Any]) -> list[str]:
    """Return a problem for each unknown key and wrong type in an experiment's file: Hydra merges them silently."""
    choices = config["hydra"]["runtime"]["choices"]
    experiment = choices.get("experiment")
    if experiment is None:
        return []
    without = [
        f"{group}={choice}"
        for group, choice in choices.items()
        if isinstance(choice, str)
        and group != "experiment"
        and (group == "hydra/launcher" or not group.startswith("hydra/"))
    ]
    plain = _compose(loader, name, without)
    known, problems = dict(leaves(plain)), []
    for key, value in leaves(config):
        if key.startswith(("hydra.", f"{LEFT_OUT}.", *(f"{mapping}." for mapping in config_keys.OPEN_MAPPINGS))):
            continue
        if key not in known:
            problems.append(config_keys.unknown_key(key, plain, choices))
        elif problem := config_keys.type_problem(key, known[key], value):
            problems.append(problem)
    problems += config_keys.incomplete_entries(config, plain, choices)
    if config.get(EPOCHS) is not None and config[STEPS] not in (None, plain[STEPS]):
        problems.append(f"epochs={config[EPOCHS]} and steps={config[STEPS]}: both say how long a run is. Keep one.")
    return [f"experiment={experiment}: {problem}" for problem in problems]
