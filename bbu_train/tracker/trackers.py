"""Several trackers as one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tracker(Protocol):
    """What every choice of conf/tracker offers the training loop."""

    def open(self, config: dict[str, Any], step: int) -> None: ...
    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def sync(self) -> None: ...
    def artifact(self, path: Path) -> None: ...
    def close(self, state: str) -> None: ...


class Trackers:
    """Every tracker of a run, by its key in conf/tracker. Ranks other than 0 have none."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self.trackers = trackers

    def open(self, config: dict[str, Any], step: int) -> None:
        """Start logging after `step`. No row that an earlier attempt logged later may appear twice."""
        for tracker in self.trackers.values():
            tracker.open(config, step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for tracker in self.trackers.values():
            tracker.log(step, metrics)

    def sync(self) -> None:
        """Wait until what was logged is on disk. A checkpoint is written after this."""
        for tracker in self.trackers.values():
            tracker.sync()

    def publish(self, paths: Sequence[Path]) -> None:
        """Keep these files of the run's folder as artifacts."""
        for path in paths:
            for tracker in self.trackers.values():
                tracker.artifact(path)

    def close(self, state: str) -> None:
        """`state` says how the run ended: done, preempted, interrupted or failed."""
        for tracker in self.trackers.values():
            tracker.close(state)

    @property
    def mlflow_command(self) -> str | None:
        """The command and the page that show this run in MLflow, a line each, if MLflow is among the trackers."""
        return getattr(self.trackers.get("mlflow"), "command", None)
