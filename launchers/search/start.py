"""A sweep that is searched and not run as a whole: its place in the ledger, and what starts it and shows it.

search/command.json    the command, the space, and what is the same in every trial
search/config.yaml     the config of the first trial, and of the search itself
search/<attempt>/      every start of the controller that makes the trials (controller.py), as of a run
<run>/trial.json       which trial a run is: its number, and its values as Optuna has them
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from bbu_train.errors import InputError, all_problems
from bbu_train.runs import folder as run_folder
from bbu_train.runtime import preemption
from bbu_train.runtime.atomic_write import atomic_write
from launchers import jobs, status
from launchers.cells import Cell
from launchers.here import Here
from launchers.ledger import Attempt, Ledger, locked
from launchers.preflight import check as preflight
from launchers.preflight import estimate
from launchers.search.command import SearchCommand, made_study
from launchers.search.trials import recorded

POLL_SECONDS = 5  # between tables of a command that waits


def launch(command: SearchCommand, arguments: Sequence[str]) -> int:
    """Start a search, or go on with it; give the exit code. Nothing is started if its first trial could not run."""
    first = command.cell(made_study(command).ask().params)
    if isinstance(instantiate(first.cfg.launchers, _convert_="all"), Here):
        raise InputError("A search needs a process for each trial: give hydra/launcher=local, or slurm.")
    ledger = Ledger(Path(first.cfg.folder).parent / "ledger")
    with locked(ledger.folder):
        _refuse(ledger, command)  # before the slow check, and again after it
    (need,) = estimate.measured([first])
    found = preflight.check([first], estimate.unmeasured([first], [need]))
    need = need or estimate.computed(first, **found[0])
    num_trials = command.settings.num_trials
    expected = estimate.report([first] * num_trials, [need] * num_trials)
    print(f"{num_trials} trials, if each were like the first and none pruned:\n{expected}", flush=True)
    return begin(ledger, command, arguments, first)


def begin(ledger: Ledger, command: SearchCommand, arguments: Sequence[str], first: Cell) -> int:
    """Start the search, whose `first` cell has been checked."""
    with locked(ledger.folder):
        _refuse(ledger, command)
        _write_down(ledger, command, arguments, first)
        attempt = ledger.search.claim()
    return _start(ledger, attempt)


def resume(ledger: Ledger) -> int:
    """Start the controller again, which goes on with the trials that are there and makes those that are missing."""
    with locked(ledger.folder):
        _refuse_two(ledger)
        attempt = ledger.search.claim()
    return _start(ledger, attempt)


def _start(ledger: Ledger, attempt: Attempt) -> int:
    cfg = ledger.search.config()
    launcher = instantiate(cfg.launchers, _convert_="all")
    launcher.control(attempt, ledger, OmegaConf.to_container(cfg.search.controller, resolve=True))
    return watch(ledger) if launcher.wait else show(ledger)


def _write_down(ledger: Ledger, command: SearchCommand, arguments: Sequence[str], first: Cell) -> None:
    cfg = first.cfg.copy()
    with open_dict(cfg):
        cfg.search = command.settings
    space = {key: override.get_value_string() for key, override in command.searched.items()}
    its = {"arguments": list(arguments), "started_in": str(Path.cwd()), "space": space, "fixed": command.fixed}
    folder = ledger.search.folder
    folder.mkdir(exist_ok=True)
    atomic_write(folder / "config.yaml", run_folder.as_yaml(cfg))
    atomic_write(folder / "command.json", json.dumps(its, ensure_ascii=False))


def written_down(ledger: Ledger) -> dict[str, Any]:
    return json.loads((ledger.search.folder / "command.json").read_text(encoding="utf-8"))


def _refuse(ledger: Ledger, command: SearchCommand) -> None:
    """Refuse a second controller, and a study that could not learn from the trials that are there."""
    if not ledger.search.is_search:
        return
    _refuse_two(ledger)
    was = written_down(ledger)
    before, now = was["space"], {key: its.get_value_string() for key, its in command.searched.items()}
    problems = [f"{key} was searched over {text} and is not now" for key, text in before.items() if key not in now]
    for key, text in now.items():
        if key not in before:
            problems.append(f"{key}={text} was not searched before")
        elif command.space[key] != command.distribution(key, before[key]):
            problems.append(f"{key} was searched over {before[key]} and is over {text} now")
    problems += [f"{text} was given before and is not now" for text in was["fixed"] if text not in command.fixed]
    problems += [f"{text} was not given before" for text in command.fixed if text not in was["fixed"]]
    if problems:
        what = f"The search of {ledger.sweep} was started over another space"
        raise all_problems(what, problems, "Give the same again, or the new one a sweep=<name> of its own.")


def _refuse_two(ledger: Ledger) -> None:
    state = ledger.search.state(jobs.seen())
    if state.in_hand:
        raise InputError(
            f"The search of {ledger.sweep} is {state.name} already, as {state.job}: a second would run trials twice. "
            f"python -m launchers status {ledger.folder.parent} shows it, cancel ends it."
        )


def table(ledger: Ledger) -> str:
    """Every run, and how far the search is."""
    return f"{status.table(ledger, status.rows(ledger))}\n{line(ledger)}"


def line(ledger: Ledger) -> str:
    state = ledger.search.state(jobs.seen())
    num_trials = ledger.search.config().search.num_trials
    where = f", {state.job}" if state.job else ""
    return f"search: {state.name}{where}; {len(recorded(ledger))} of {num_trials} trials are drawn"


def show(ledger: Ledger) -> int:
    print(table(ledger))
    print(f"To see how it gets on: python -m launchers status {ledger.folder.parent}", flush=True)
    return 0


def watch(ledger: Ledger) -> int:
    """Show the table until neither the search nor a run has a job left that can be seen; 0 if the search has ended
    well, else 1."""
    shown, patience = None, jobs.Patience()
    while True:
        with patience:
            states = [ledger.search.state(jobs.seen()), *(row.state for row in status.rows(ledger))]
            text = table(ledger)
            if text != shown:
                print("\033[2J\033[H" * sys.stdout.isatty() + text, flush=True)
                shown = text
            if not any(state.may_change for state in states):
                return int(states[0].name != "done")
        preemption.end_sweep_if_asked()
        time.sleep(POLL_SECONDS)
