"""From a command to a run: check the overrides, let Hydra compose the config, run the task, report what went wrong.

Nothing here imports torch, so that `--help` and every mistake are answered at once.
"""

import functools
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bbu_train.cli import overrides
from bbu_train.errors import (
    INTERRUPTED,
    MAX_LINES,
    InputError,
    Interrupted,
    Preempted,
    SweepPreempted,
    shorten,
)
from bbu_train.runs import folder as run_folder
from bbu_train.runs.names import quote_typed
from bbu_train.runtime import environment

Task = Callable[[DictConfig, Sequence[str]], None]
"""Runs a config, given the overrides that the user typed."""

Check = Callable[[str, DictConfig, Sequence[str]], None]
"""Prints what is known of a run before it trains, on a GPU given by its name or its GiB; "": on this machine."""

Launch = Callable[[Sequence[str], Path, bool], int]
"""Starts the runs of a sweep from the arguments of a command and conf/, or only checks them. Returns the exit code."""

CHECK_OPTION = "--check"


def run_command(task: Task, folder: Path, launch: Launch, check: Check) -> int:
    """Run `task` with the config that `sys.argv` composes from `folder`, or `launch` a sweep. Return the exit code.

    With CHECK_OPTION, which Hydra does not know, `check` takes the place of `task`, and a sweep is only checked.

    0: done, or help was shown. 1: a defect of the program, with its traceback. 2: a mistake of the user, in one message
    without a traceback (`BBU_FULL_ERROR=1` adds it). 75: a signal ended the run, and the message says how to go on.
    130: Ctrl-C ended the run, and the message says how to go on.
    """
    environment.set_defaults()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints exceptions itself and exits with 1
    try:
        words, card = _take_check_option(sys.argv[1:])
        words = [quote_typed(word) for word in overrides.options_first(words)]
        sys.argv[1:], added = overrides.add_choices_of_resumed_run(words)
        command = overrides.check(sys.argv[1:], folder)
        if command.is_sweep and not command.only_shows:
            if card:
                raise InputError(f"--check={card} plans one run: leave out -m, or take --check alone for the sweep.")
            return launch(sys.argv[1:], folder, card is not None)
        if card is not None:
            task = functools.partial(check, card)
        _run(_reporting(task, added), folder)
    except BrokenPipeError:
        close_stdout()
    except KeyboardInterrupt as error:
        report_interrupt(error)
        return INTERRUPTED
    except Exception as error:
        return report_error(_as_input_error(error))
    return 0


def _run(task: Callable[[DictConfig], None], folder: Path) -> None:
    """Run `task` with the config of `sys.argv`, or show of Hydra and the config what the options ask for.

    `hydra.main` composes by a loader of its own, so a config that is run or shown (--cfg) is composed here.
    """
    flags = get_args_parser().parse_args(sys.argv[1:])
    name = flags.config_name or overrides.CONFIG_NAME
    if flags.help or flags.hydra_help or flags.info or flags.shell_completion or (flags.resolve and not flags.cfg):
        hydra.main(version_base=overrides.VERSION_BASE, config_path=str(folder), config_name=name)(task)()
        return
    application = Hydra("bbu_train", overrides.config_loader(folder, flags.config_dir))
    if flags.cfg:
        application.show_cfg(name, flags.overrides, flags.cfg, flags.package, flags.resolve)
    else:
        application.run(name, task, flags.overrides)


def _take_check_option(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the words without CHECK_OPTION, and the GPU that it names: "": this machine, None: no such option."""
    for option, card in itertools.pairwise(words):
        if option == CHECK_OPTION and not card.startswith("-") and "=" not in card:
            raise InputError(f"{CHECK_OPTION} {card}: write {CHECK_OPTION}={card}.")
    options = [word for word in words if word.split("=")[0] == CHECK_OPTION]
    card = options[-1].partition("=")[2] if options else None
    return [word for word in words if word not in options], card


def close_stdout() -> None:
    """Redirect stdout to /dev/null.

    The reader of the pipe has exited (such as `head`), and Python would otherwise print an error when it flushes at
    exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reporting(task: Task, added: Sequence[str]) -> Callable[[DictConfig], None]:
    """Wrap `task` so that it reports its own failure and exits by SystemExit, for which Hydra prints nothing."""

    @functools.wraps(task)
    def reporting(cfg: DictConfig) -> None:
        typed = [override for override in HydraConfig.get().overrides.task if override not in added]
        resumed = cfg.get("resume")
        try:
            with run_folder.built_by_this_code(resumed) if resumed else nullcontext():
                task(cfg, typed)
        except Exception as error:
            raise SystemExit(report_error(error)) from error

    return reporting


def report_error(error: Exception) -> int:
    """Print what went wrong to stderr, and return the exit code."""
    code = exit_code(error)
    if code == 1 or os.environ.get("BBU_FULL_ERROR") == "1":
        traceback.print_exception(error)
    if code == 2:
        print(f"error: {cause_of(error)}", file=sys.stderr, flush=True)
    if isinstance(error, Preempted) and os.environ.get("RANK", "0") == "0":
        print(f"{error} {_how_to_go_on(error)}", file=sys.stderr, flush=True)
    return code


def report_interrupt(error: KeyboardInterrupt) -> None:
    """Print to stderr what Ctrl-C has ended at once, and how to go on: the text of the error, if it has one."""
    if os.environ.get("RANK", "0") != "0":
        return
    text = str(error) or "Interrupted. Give the same command again to go on."
    if isinstance(error, Interrupted):
        text = f"{error} {_how_to_go_on(error)}"
    print(text, file=sys.stderr, flush=True)


def exit_code(error: Exception) -> int:
    if isinstance(error, Preempted):
        return error.exit_code
    return 2 if isinstance(cause_of(error), InputError) else 1


def _how_to_go_on(error: Preempted | Interrupted) -> str:
    if isinstance(error, SweepPreempted):
        return "The same command goes on with it."
    if not (Path(error.folder) / run_folder.CONFIG).exists():
        return "Nothing was written: give the same command again."
    return f"To go on: {run_folder.command_to_go_on(error.folder, error.go_on)}"


def cause_of(error: BaseException) -> BaseException:
    """Return the error of a component's constructor, which `instantiate` wraps."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _as_input_error(error: Exception) -> Exception:
    """Turn an error of Hydra, or of a YAML file that it reads, into an InputError: the user must fix it."""
    if not isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError | ValueError):
        return error
    if isinstance(error, InputError):
        return error
    messages = [str(part).strip() for part in (error, error.__cause__) if part is not None and str(part).strip()]
    lines = [shorten(line) for line in "\n".join(messages).splitlines()]
    more = [f"... and {len(lines) - MAX_LINES} more lines: BBU_FULL_ERROR=1 shows all"] if lines[MAX_LINES:] else []
    input_error = InputError("\n".join([*lines[:MAX_LINES], *more]))
    input_error.__cause__ = error
    return input_error
