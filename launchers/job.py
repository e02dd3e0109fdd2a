"""What a job runs: one attempt at a run, or at the controller of a search. Torch is imported only to train.

A job that is started again, by itself or by SLURM, gets the same attempt, and the run resumes from its last checkpoint.
"""

from bbu_train.runtime import environment, preemption

if __name__ == "__main__":
    preemption.install()  # before the slow imports: an early signal must not kill the process
    environment.set_defaults()

import os  # noqa: E402
import shlex  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402

from hydra.conf import HydraConf  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig, OmegaConf, open_dict  # noqa: E402

from bbu_train.cli.main import report_error, report_interrupt  # noqa: E402
from bbu_train.errors import INTERRUPTED, Preempted  # noqa: E402
from bbu_train.runs.data_fingerprint import refuse_changed  # noqa: E402
from launchers import job_states, ranks  # noqa: E402
from launchers.ledger import Attempt, Entry, Ledger  # noqa: E402


class Job:
    """One attempt, called on every rank."""

    def __init__(self, attempt_folder: str):
        self.attempt_folder = attempt_folder

    def __call__(self) -> Preempted | None:
        """Run the attempt. Return the Preempted error instead of raising it, so that SLURM counts no failure."""
        preemption.install()  # first, as a signal that comes earlier kills the process
        environment.set_defaults()
        return self.run()

    def run(self) -> Preempted | None:
        """Run the attempt without installing signal handlers."""
        attempt = Attempt(Path(self.attempt_folder))
        entry = Entry(attempt.entry_folder)
        job, is_main = _join_ranks()
        process_info = {"node": socket.gethostname(), "pid": os.getpid(), "restart": _num_restarts()}
        if is_main and (refusal := attempt.begin(job, **process_info)):
            sys.exit(f"{entry.run} does not run here: {refusal}.")  # this ends the other ranks too
        try:
            cfg = entry.config()
            _search(entry, cfg) if entry.is_search else _train(entry, cfg)
        except Preempted as preempted:
            if is_main:
                _record_preemption(attempt, job, preempted, entry.config())
            return preempted
        except KeyboardInterrupt as interrupt:
            attempt.write("cancelled", reason=str(interrupt) or "interrupted by hand before the first step")
            raise
        except BaseException as error:
            attempt.fail(job, traceback.format_exc(), _summarize(error))
            raise
        if is_main:
            attempt.write("state", state="done", job=job)
        return None


def _join_ranks() -> tuple[str, bool]:
    """Return the job's id and whether this is rank 0. Tasks of a SLURM job get torch's environment variables."""
    if "SLURM_JOB_ID" not in os.environ or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return job_states.local_job_id(), ranks.is_main()
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    environment = JobEnvironment()
    if environment.num_tasks > 1:
        # Leave all GPUs visible, because LOCAL_RANK is an index into them. A process that has replaced itself
        # (`runtime/restart.py`) finds the variables that it has set before.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    return environment.job_id, environment.global_rank == 0


def _search(entry: Entry, cfg: DictConfig) -> None:
    from launchers.search.controller import Controller  # it imports Optuna

    Controller(Ledger(entry.folder.parent), cfg).run()


def _train(entry: Entry, cfg: DictConfig) -> None:
    """Train as if the run's command had been given in the folder where the sweep was started.

    Raises InputError if the data is not what it was then.
    """
    cell = entry.cell
    os.chdir(cell["started_in"])
    sys.argv = ["bbu_train", *cell["overrides"]]
    hydra = OmegaConf.structured(HydraConf)
    with open_dict(hydra):
        hydra.runtime.choices = cell["choices"]
    HydraConfig.instance().set_config(OmegaConf.create({"hydra": hydra}))
    cfg = cfg.copy()
    with open_dict(cfg):
        del cfg["launchers"]
    with preemption.signals_raise(lambda name: Preempted(0, name, cfg.folder)):
        refuse_changed(cfg, Path(cfg.folder))  # the data may have changed while the job waited

        from bbu_train.train import train

    train(cfg)


def _record_preemption(attempt: Attempt, job: str, preempted: Preempted, cfg: DictConfig) -> None:
    """Record that the run was preempted, after all ranks have saved, and requeue its job.

    The job is not requeued if it is a local process, was cancelled or interrupted by hand, or has been requeued
    cluster.max_requeues times; nor if SLURM no longer calls it running, as after a plain scancel.
    """
    saved = f"saved at step {preempted.step}" if preempted.step else "there was nothing to save"
    num_requeues, reason = _num_restarts(), f"{preempted.signal}; {saved}"
    can_requeue = not (job.startswith("local/") or preempted.signal == "SIGINT" or attempt.read("cancelled"))
    if can_requeue and num_requeues >= cfg.cluster.max_requeues:
        can_requeue = False
        reason += f"; requeued {num_requeues} times, as often as cluster.max_requeues allows"
    if preempted.signal == "SIGINT":
        attempt.write("cancelled", reason=f"interrupted by hand; {saved}")
    attempt.write("state", state="preempted", job=job, step=preempted.step, reason=reason)
    if can_requeue and job_states.run_slurm_command("squeue", "--noheader", "--states=RUNNING", f"--jobs={job}"):
        subprocess.run(["scontrol", "requeue", job], check=True)


def _num_restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _summarize(error: BaseException) -> str:
    """Return the class and first line of the original error, which `instantiate` may have wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


if __name__ == "__main__":
    sweep = Path(sys.argv[1]).parents[2]  # `_train` changes the arguments
    try:
        if (ended := Job(sys.argv[1])()) is not None:
            print(f"{ended} To resume: python -m launchers resume {shlex.quote(str(sweep))}", file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        report_interrupt(interrupt)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(report_error(error))
