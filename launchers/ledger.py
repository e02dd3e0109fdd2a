"""What is known of a sweep's runs, as small files that many jobs may write at once: `outputs/<sweep>/ledger`.

    <run>/cell.json      what a table of runs needs of it: overrides, folder, steps, git commit, how it is started
    <run>/config.yaml    the config that its job takes
    <run>/<attempt>/     0001, 0002, ...: every time that the run was submitted or started
        queued.json      who submitted it, and when
        job.json         the id of its job
        state.json       what the job itself says: running, preempted, failed or done
        cancelled.json   somebody wants it to end, or it was never submitted, and why; with `state`, a search pruned it
    search/              what makes the runs one after the other, if not a grid: an entry of its own (search.py)

Every file is written beside its place and renamed into it, so a crash at any moment leaves each old or new, and each
has one kind of writer. What an attempt says of itself holds as long as its job is there, which the scheduler knows
(jobs.py), so one that was killed is known as lost.
"""

import getpass
import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from bbu_train.errors import InputError
from bbu_train.runs import folder as run_folder
from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.runtime.git import git_commit
from launchers import jobs
from launchers.cells import Cell

LOCK_SECONDS = 120  # a submission holds the lock for seconds
OPEN = ("preempted", "lost", "cancelled", "missing")
"""States in which a run may be started again, unless a job has it in hand; a failed one only on demand."""


@dataclass(frozen=True)
class State:
    """`name` is queued, running, preempted, failed, done, lost, cancelled, pruned or missing (never submitted).

    `in_hand` is whether its job is there, or may be: a preempted one that queued itself again is. `is_seen` is whether
    that can be told from here.
    """

    name: str
    reason: str = ""
    job: str | None = None
    in_hand: bool = False
    is_seen: bool = True

    @property
    def may_change(self) -> bool:
        """Whether it is worth to wait for another state: one that is this process's own comes when it looks no more."""
        return self.in_hand and self.is_seen and self.job != jobs.this_process()


class Attempt:
    """One start of a run. Its job holds nothing but the path."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.number = int(folder.name)
        self.entry_folder = folder.parent

    def read(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def write(self, name: str, **values: Any) -> None:
        atomic_write(self.folder / f"{name}.json", json.dumps({**values, "time": time.time()}, ensure_ascii=False))

    @property
    def job(self) -> str | None:
        return (self.read("state") or self.read("job")).get("job")

    def begin(self, job: str, **where: Any) -> str | None:
        """Say that `job` runs this attempt, and `where`, or why it must not: None lets it run."""
        with locked(self.entry_folder.parent):
            newest = Entry(self.entry_folder).newest()
            assert newest is not None
            state = self.read("state").get("state")
            if newest.number != self.number:
                return f"it was submitted again, as attempt {newest.number}"
            if self.read("cancelled"):
                return "it was cancelled"
            if state == "done":
                return "it is done"
            self.write("state", state="running", job=job, **where)
        return None

    def fail(self, job: str, traceback: str, message: str) -> None:
        """The first rank that fails has the reason; the others fail because it has left them."""
        if self.read("state").get("state") != "failed":
            self.write("state", state="failed", job=job, traceback=traceback, reason=message)

    def state(self, job_state: Callable[[str], str | None]) -> State:
        """What is true now: what the job said of itself, if it is still there; see `jobs.seen`."""
        job = self.job
        now = "gone" if job is None else job_state(job)
        said, cancelled = self.read("state"), self.read("cancelled")  # after its job was asked for: see jobs.seen
        name = said.get("state", "queued")
        if name in ("done", "failed"):
            return State(name, said.get("reason", ""), job)
        if now in jobs.LIVE:
            if now == "waiting" and name == "running":  # SLURM stopped it without a word to it, and starts it again
                name = "preempted"
            return State(name, "being cancelled" if cancelled else said.get("reason", ""), job, in_hand=True)
        if cancelled:
            return State(cancelled.get("state", "cancelled"), cancelled["reason"], job, is_seen=now is not None)
        if now is None:
            return State(name, "its job cannot be seen from here", job, in_hand=True, is_seen=False)
        if name == "preempted":  # it saved, and did not queue itself again
            return State(name, said["reason"], job)
        ended = "never submitted" if job is None else f"its job is gone: {now}"
        return State("lost", f"was {name}; {ended}", job)


class Entry:
    """A run in the ledger."""

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
        OmegaConf.set_struct(cfg, True)
        return cfg

    def newest(self) -> Attempt | None:
        names = [path.name for path in self.folder.iterdir() if path.name.isdigit()]
        return Attempt(self.folder / max(names)) if names else None

    def claim(self) -> Attempt:
        """A new attempt, which ends the right of all older ones to begin. The caller holds the lock."""
        newest = self.newest()
        attempt = Attempt(self.folder / f"{newest.number + 1 if newest else 1:04d}")
        attempt.folder.mkdir()
        attempt.write("queued", user=getpass.getuser(), host=socket.gethostname())
        return attempt

    def state(self, job_state: Callable[[str], str | None]) -> State:
        newest = self.newest()
        return newest.state(job_state) if newest else State("missing", "never submitted")


class Ledger:
    """All runs of the sweep whose ledger lies in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sweep = folder.parent.name

    def add(self, cells: Sequence[Cell]) -> list[Entry]:
        """Write down the cells, or write them anew with the command's present paths, tracker and cluster."""
        commit = git_commit()
        entries, here = [], str(Path.cwd())
        for cell in cells:
            entry = self.entry(cell.cfg.run)
            entry.folder.mkdir(parents=True, exist_ok=True)
            its = {"overrides": cell.overrides, "choices": cell.choices, "git_commit": commit, "started_in": here}
            its |= {"folder": cell.cfg.folder, "steps": cell.cfg.steps}
            its["launcher"] = OmegaConf.to_container(cell.cfg.launchers, resolve=True)
            atomic_write(entry.folder / "config.yaml", run_folder.as_yaml(cell.cfg))
            atomic_write(entry.folder / "cell.json", json.dumps(its, ensure_ascii=False))
            entries.append(entry)
        return entries

    def entry(self, run: str) -> Entry:
        return Entry(self.folder / run)

    @property
    def search(self) -> Entry:
        """Of the search that makes the sweep's runs: each of its attempts is a start of its controller."""
        return Entry(self.folder / "search")

    def entries(self) -> list[Entry]:
        """Every run that is written down, in the order of names."""
        return [Entry(path.parent) for path in sorted(self.folder.glob("*/cell.json"))]


def locked(folder: Path) -> FileLock:
    """For `with`: nobody else submits, begins or cancels runs of the ledger in `folder` meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    return _Lock(folder / ".lock", timeout=LOCK_SECONDS)


class _Lock(FileLock):
    def acquire(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().acquire(*arguments, **options)
        except Timeout as error:
            raise InputError(
                f"Another command has held {self.lock_file} for over {LOCK_SECONDS} s. Try again when it is through."
            ) from error
