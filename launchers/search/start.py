"""Starting, resuming and showing a search. Its place in the ledger:

search/command.json    the command, the space, the overrides that all trials share, and the first trial's data
search/config.yaml     the config of the first trial, with the settings of the search
search/<attempt>/      every start of the controller (controller.py), as of a run
<run>/trial.json       the number and the parameters of the run's trial (trials.py)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from bbu_train.errors import InputError, all_problems
from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity
from bbu_train.runtime.atomic_write import atomic_write
from launchers import job_states
from launchers.cells import Cell
from launchers.ledger import Attempt, Ledger
from launchers.lock import locked
from launchers.preflight import estimate
from launchers.preflight.check import check_cells, with_steps
from launchers.protocol import Launcher, SearchLauncher
from launchers.search.command import SearchCommand, create_study
from launchers.search.trials import read_trials
from launchers.status import format_table, read_statuses
from launchers.watch import Snapshot, show, watch


def check_search(command: SearchCommand) -> tuple[Ledger, SearchCommand, Cell]:
    """Check the first trial of a search and print what the search will take; return what `start_search` takes.

    Raises InputError if the trial could not run.
    """
    first = command.cell(create_study(command).ask().params)
    launcher: Launcher = instantiate(first.cfg.launchers, _convert_="all")
    if not launcher.can_search:
        raise InputError("A search needs a process for each trial: give hydra/launcher=local, or slurm.")
    ledger = Ledger(Path(first.cfg.folder).parent / "ledger")
    launcher.check(ledger)
    with locked(ledger.folder):
        _refuse_conflicts(ledger, command, first)  # before the slow check, and again after it
    (known,) = estimate.from_finished_runs([first])
    known_steps: dict[str, int] = {}
    requirements = check_cells([first], estimate.group_without_estimate([first], [known]), known_steps)
    first = with_steps(first, known_steps)
    if command.config.steps is None:
        command.config.steps = first.cfg.steps
        create_study(command)  # its pruner may need the number of steps
    expected = known or estimate.from_requirements(first, **requirements[0])
    num_trials = command.settings.num_trials
    text = estimate.format_estimates([first] * num_trials, [expected] * num_trials)
    print(f"{num_trials} trials, if each were like the first and none pruned:\n{text}", flush=True)
    return ledger, command, first


def start_search(ledger: Ledger, command: SearchCommand, first: Cell, arguments: Sequence[str]) -> int:
    """Start a search whose first cell has been checked, or resume it; return the exit code."""
    with locked(ledger.folder):
        _refuse_conflicts(ledger, command, first)
        _record(ledger, command, arguments, first)
        attempt = ledger.search.add_attempt()
    return _start_controller(ledger, attempt)


def resume_search(ledger: Ledger) -> int:
    """Start the controller again: it continues the existing trials and makes the missing ones; return the exit code."""
    with locked(ledger.folder):
        _refuse_second_controller(ledger)
        attempt = ledger.search.add_attempt()
    return _start_controller(ledger, attempt)


def _start_controller(ledger: Ledger, attempt: Attempt) -> int:
    cfg = ledger.search.config()
    launcher: SearchLauncher = instantiate(cfg.launchers, _convert_="all")
    launcher.start_controller(attempt, ledger, OmegaConf.to_container(cfg.search.controller, resolve=True))
    return _watch(ledger) if launcher.wait else _show(ledger)


def _record(ledger: Ledger, command: SearchCommand, arguments: Sequence[str], first: Cell) -> None:
    """Write command.json and config.yaml."""
    cfg = first.cfg.copy()
    with open_dict(cfg):
        cfg.search = command.settings
    record = {
        "arguments": list(arguments),
        "started_in": str(Path.cwd()),
        "space": {key: override.get_value_string() for key, override in command.searched.items()},
        "fixed": command.fixed,
        "data": OmegaConf.select(first.cfg, identity.DATA),
    }
    folder = ledger.search.folder
    folder.mkdir(exist_ok=True)
    atomic_write(folder / "config.yaml", run_folder.as_yaml(cfg))
    atomic_write(folder / "command.json", json.dumps(record, ensure_ascii=False))


def read_record(ledger: Ledger) -> dict[str, Any]:
    """Return the content of command.json."""
    return json.loads((ledger.search.folder / "command.json").read_text(encoding="utf-8"))


def _refuse_conflicts(ledger: Ledger, command: SearchCommand, first: Cell) -> None:
    """Raise InputError if another controller is running, or the existing trials have another space or other data."""
    if not ledger.search.is_search:
        return
    _refuse_second_controller(ledger)
    record = read_record(ledger)
    before, now = record["space"], {key: override.get_value_string() for key, override in command.searched.items()}
    problems = [f"{key} was searched over {text} and is not now" for key, text in before.items() if key not in now]
    for key, text in now.items():
        if key not in before:
            problems.append(f"{key}={text} was not searched before")
        elif command.space[key] != command.distribution(key, before[key]):
            problems.append(f"{key} was searched over {before[key]} and is over {text} now")
    problems += [f"{text} was given before and is not now" for text in record["fixed"] if text not in command.fixed]
    problems += [f"{text} was not given before" for text in command.fixed if text not in record["fixed"]]
    data = OmegaConf.select(first.cfg, identity.DATA)
    if record.get("data", data) != data:
        problems.append(f"the data of the first trial had the fingerprint {record['data']} and has {data} now")
    if problems:
        what = f"The search of {ledger.sweep} was started over another space or other data"
        raise all_problems(what, problems, "Give the same command again, or give the new search its own sweep=<name>.")


def _refuse_second_controller(ledger: Ledger) -> None:
    state = ledger.search.state(job_states.lookup())
    if state.has_live_job:
        raise InputError(
            f"The search of {ledger.sweep} is {state.name} already, as {state.job}: a second would run trials twice. "
            f"python -m launchers status {ledger.folder.parent} shows it, cancel ends it."
        )


def format_progress(ledger: Ledger) -> str:
    """Return a line with the state of the search and the number of its trials."""
    state = ledger.search.state(job_states.lookup())
    num_trials = ledger.search.config().search.num_trials
    job = f", {state.job}" if state.job else ""
    return f"search: {state.name}{job}; {len(read_trials(ledger))} of {num_trials} trials are drawn"


def _show(ledger: Ledger) -> int:
    show(ledger, f"{format_table(ledger, read_statuses(ledger))}\n{format_progress(ledger)}")
    return 0


def _watch(ledger: Ledger) -> int:
    """Watch until neither the search nor a run has a live job that this host can see.

    Return 0 if the search is done, else 1.
    """

    def take_snapshot() -> Snapshot:
        search, statuses = ledger.search.state(job_states.lookup()), read_statuses(ledger)
        table = f"{format_table(ledger, statuses)}\n{format_progress(ledger)}"
        states = [search, *(status.state for status in statuses)]
        return Snapshot(table, states, int(search.name != "done"))

    return watch(take_snapshot)
