"""What a launcher is. conf/hydra/launcher/*.yaml name the classes: Here, Local and Slurm."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from launchers.ledger import Attempt, Ledger


class Launcher(Protocol):
    """Starts the runs of a sweep."""

    wait: bool
    """Whether the command stays until no run of the sweep has a live job."""

    can_search: bool
    """Whether it is a SearchLauncher: a search needs a process for each trial."""

    handles_signals: bool
    """Whether it trains in this process or its children, so that a signal must first end their runs."""

    works_under_torchrun: bool
    """Whether the processes of torchrun may train each run together."""

    def check(self, ledger: Ledger) -> None:
        """Raise InputError if no run of this ledger can be started, because of where it lies."""
        ...

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        """Start those of `runs` that are in one of `states`; return the exit code."""
        ...


class SearchLauncher(Launcher, Protocol):
    """A launcher that can also start the controller of a search."""

    def start_controller(self, attempt: Attempt, ledger: Ledger, cluster: Mapping[str, Any]) -> None:
        """Start the controller as `attempt`. On SLURM `cluster` replaces settings of the cluster's file."""
        ...
