"""The ledger of a sweep's runs: small files in `outputs/<sweep>/ledger` that many jobs may write at once.

    <run>/cell.json      what a table of runs shows of it: overrides, folder, steps, git commit, launcher
    <run>/config.yaml    the config that its job takes
    <run>/<attempt>/     0001, 0002, ...: one folder for every submission or local start of the run
        queued.json      who submitted it, and when
        job.json         the id of its job
        state.json       what the job reports of itself: running, preempted, failed or done
        cancelled.json   why the attempt shall end or was never submitted; `state` is "pruned" if a search did it
    search/              if a search makes the runs: an entry for its controller (search/start.py)

Every file is written atomically. Only a job writes state.json; several programs may write cancelled.json. A job that is
killed cannot update its state.json. So a state of queued or running is believed only while the scheduler still knows
the job (job_states.py); otherwise the run is reported as lost.
"""

import getpass
import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bbu_train.runs import folder as run_folder
from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.runtime.git import git_commit
from launchers import job_states
from launchers.cells import Cell
from launchers.lock import locked

RESTARTABLE = ("preempted", "lost", "cancelled", "missing")
"""States in which a run without a live job may be started again. A failed run is started only with `retry --failed`."""


@dataclass(frozen=True)
class State:
    """The state of a run or of one attempt.

    `name` is queued, running, preempted, failed, done, lost, cancelled, pruned or missing (never submitted).
    `has_live_job` is True if its job exists, or may exist where this host cannot see it. A preempted run whose job
    requeued itself has one. `is_job_visible` says whether this host can tell.
    """

    name: str
    reason: str = ""
    job: str | None = None
    has_live_job: bool = False
    is_job_visible: bool = True

    @property
    def can_change(self) -> bool:
        """Whether the state may change while this process waits. It cannot if this process is itself the job."""
        return self.has_live_job and self.is_job_visible and self.job != job_states.local_job_id()


class Attempt:
    """One submission or local start of a run. A requeued job keeps its attempt: it stores the path."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.number = int(folder.name)
        self.entry_folder = folder.parent

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of `<name>.json`, or an empty dict if there is no such file."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def write(self, name: str, **values: Any) -> None:
        atomic_write(self.folder / f"{name}.json", json.dumps({**values, "time": time.time()}, ensure_ascii=False))

    @property
    def job(self) -> str | None:
        return (self.read("state") or self.read("job")).get("job")

    def begin(self, job: str, **process_info: Any) -> str | None:
        """Record that `job` runs this attempt, with `process_info`; or return the reason why it must not run."""
        with locked(self.entry_folder.parent):
            newest = Entry(self.entry_folder).newest_attempt()
            assert newest is not None
            if newest.number != self.number:
                return f"it was submitted again, as attempt {newest.number}"
            if self.read("cancelled"):
                return "it was cancelled"
            if self.read("state").get("state") == "done":
                return "it is done"
            self.write("state", state="running", job=job, **process_info)
        return None

    def fail(self, job: str, traceback: str, message: str) -> None:
        """Record a failure. The first rank that fails has the reason; the others fail because they lost that rank."""
        if self.read("state").get("state") != "failed":
            self.write("state", state="failed", job=job, traceback=traceback, reason=message)

    def state(self, job_state: Callable[[str], str | None]) -> State:
        """Return the current state. A reported `done` or `failed` is final; other reports count while the job exists.

        `job_state` is `job_states.lookup`'s.
        """
        job = self.job
        job_now = "gone" if job is None else job_state(job)
        reported, cancelled = self.read("state"), self.read("cancelled")  # read after the job's state: see `lookup`
        name, reason = reported.get("state", "queued"), reported.get("reason", "")
        if name in ("done", "failed"):
            return State(name, reason, job)
        if job_now in job_states.ACTIVE:
            if (
                job_now == job_states.PENDING and name == "running"
            ):  # SLURM requeued it without notice, and will restart it
                name = "preempted"
            return State(name, "being cancelled" if cancelled else reason, job, has_live_job=True)
        if cancelled:
            name = cancelled.get("state", "cancelled")
            return State(name, cancelled["reason"], job, is_job_visible=job_now is not None)
        if job_now is None:
            return State(name, "its job cannot be seen from here", job, has_live_job=True, is_job_visible=False)
        if name == "preempted":  # it saved and did not requeue itself
            return State(name, reason, job)
        end = "never submitted" if job is None else f"its job is gone: {job_now}"
        return State("lost", f"was {name}; {end}", job)


class Entry:
    """A run in the ledger, or the search that makes the runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run = folder.name

    @property
    def is_search(self) -> bool:
        return (self.folder / "command.json").exists()

    @property
    def cell(self) -> dict[str, Any]:
        return json.loads((self.folder / "cell.json").read_text(encoding="utf-8"))

    def config(self) -> DictConfig:
        cfg = OmegaConf.load(self.folder / "config.yaml")
        assert isinstance(cfg, DictConfig)
        OmegaConf.set_struct(cfg, True)
        return cfg

    def newest_attempt(self) -> Attempt | None:
        names = [path.name for path in self.folder.iterdir() if path.name.isdigit()]
        return Attempt(self.folder / max(names)) if names else None

    def add_attempt(self) -> Attempt:
        """Add an attempt. No older attempt may begin from now on. The caller holds the lock."""
        newest = self.newest_attempt()
        attempt = Attempt(self.folder / f"{newest.number + 1 if newest else 1:04d}")
        attempt.folder.mkdir()
        attempt.write("queued", user=getpass.getuser(), host=socket.gethostname())
        return attempt

    def state(self, job_state: Callable[[str], str | None]) -> State:
        newest = self.newest_attempt()
        return newest.state(job_state) if newest else State("missing", "never submitted")


class Ledger:
    """All runs of the sweep whose ledger is in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sweep = folder.parent.name

    def add(self, cells: Sequence[Cell]) -> list[Entry]:
        """Write an entry for each cell. Existing entries get the command's present paths, tracker and cluster."""
        entries, commit, started_in = [], git_commit(), str(Path.cwd())
        for cell in cells:
            entry = self.entry(cell.cfg.run)
            entry.folder.mkdir(parents=True, exist_ok=True)
            description = {
                "overrides": cell.overrides,
                "choices": cell.choices,
                "git_commit": commit,
                "started_in": started_in,
                "folder": cell.cfg.folder,
                "steps": cell.cfg.steps,
                "launcher": OmegaConf.to_container(cell.cfg.launchers, resolve=True),
            }
            atomic_write(entry.folder / "config.yaml", run_folder.as_yaml(cell.cfg))
            atomic_write(entry.folder / "cell.json", json.dumps(description, ensure_ascii=False))
            entries.append(entry)
        return entries

    def entry(self, run: str) -> Entry:
        return Entry(self.folder / run)

    @property
    def search(self) -> Entry:
        """The entry of the search. Each of its attempts is one start of the controller."""
        return Entry(self.folder / "search")

    def entries(self) -> list[Entry]:
        """Return every run in the ledger, sorted by name."""
        return [Entry(path.parent) for path in sorted(self.folder.glob("*/cell.json"))]
