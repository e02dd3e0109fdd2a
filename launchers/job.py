"""What a job runs: one attempt at a run, which it finds in the ledger, or at the search that makes runs. Torch is
imported here only, when it trains.

A job that is started again, by itself or by SLURM, gets the same path, and the run goes on where it was saved last.
"""

from bbu_train.runtime import preemption

if __name__ == "__main__":
    preemption.install()  # before the imports, which take time: an early signal must not kill the process

import os  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402

from hydra.conf import HydraConf  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig, OmegaConf, open_dict  # noqa: E402

from bbu_train.errors import Preempted  # noqa: E402
from launchers import jobs, ranks  # noqa: E402
from launchers.ledger import Attempt, Entry, Ledger  # noqa: E402


class Job:
    """Called on every rank."""

    def __init__(self, attempt_folder: str):
        self.attempt_folder = attempt_folder

    def __call__(self) -> Preempted | None:
        """Says how the run was preempted, if it was: that is no failure of the job."""
        preemption.install()  # a signal that comes before this ends the process, so it comes before everything
        return self.run()

    def run(self) -> Preempted | None:
        """The same in a process that has other signals to obey."""
        attempt = Attempt(Path(self.attempt_folder))
        entry = Entry(attempt.entry_folder)
        job, is_main = _join_ranks()
        where = {"node": socket.gethostname(), "pid": os.getpid(), "restart": _num_restarts()}
        if is_main and (refusal := attempt.begin(job, **where)):
            sys.exit(f"{entry.run} does not run here: {refusal}.")  # which ends the other ranks too
        try:
            cfg = entry.config()
            _search(entry, cfg) if entry.is_search else _train(entry, cfg)
        except Preempted as preempted:
            if is_main:
                _preempted(attempt, job, preempted, entry.config())
            return preempted
        except KeyboardInterrupt:
            attempt.write("cancelled", reason="interrupted by hand")
            raise
        except BaseException as error:
            attempt.fail(job, traceback.format_exc(), _first_line(error))
            raise
        else:
            if is_main:
                attempt.write("state", state="done", job=job)
        return None


def _join_ranks() -> tuple[str, bool]:
    """The job's id, and whether this is its first process. Of several, each learns where it finds the others."""
    if "SLURM_JOB_ID" not in os.environ or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return jobs.this_process(), ranks.is_first()
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    environment = JobEnvironment()
    if environment.num_tasks > 1:  # all GPUs stay visible, or LOCAL_RANK would count from the wrong one
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    return environment.job_id, environment.global_rank == 0


def _search(entry: Entry, cfg: DictConfig) -> None:
    from launchers.search.controller import Controller  # which needs Optuna

    Controller(Ledger(entry.folder.parent), cfg).run()


def _train(entry: Entry, cfg: DictConfig) -> None:
    """The run, as if its command had been given in the folder where the sweep was started."""
    its = entry.cell
    os.chdir(its["started_in"])
    sys.argv = ["bbu_train", *its["overrides"]]
    hydra = OmegaConf.structured(HydraConf)
    with open_dict(hydra):
        hydra.runtime.choices = its["choices"]
    HydraConfig.instance().set_config(OmegaConf.create({"hydra": hydra}))
    cfg = cfg.copy()
    with open_dict(cfg):
        del cfg["launchers"]

    from bbu_train.train import train

    train(cfg)


def _preempted(attempt: Attempt, job: str, preempted: Preempted, cfg: DictConfig) -> None:
    """All ranks have saved. Wait in the queue again, unless somebody wants this to end or it was so too often.

    Who ends it by SLURM's own scancel is known by its job, which then is not called running any more.
    """
    saved = f"saved at step {preempted.step}" if preempted.step else "there was nothing to save"
    num_requeues, why = _num_restarts(), f"{preempted.signal}; {saved}"
    goes_on = not job.startswith("local/") and not attempt.read("cancelled")
    if goes_on and num_requeues >= cfg.cluster.max_requeues:
        goes_on = False
        why += f"; requeued {num_requeues} times, as often as cluster.max_requeues allows"
    attempt.write("state", state="preempted", job=job, step=preempted.step, reason=why)
    if goes_on and jobs.asked("squeue", "--noheader", "--states=RUNNING", f"--jobs={job}"):
        subprocess.run(["scontrol", "requeue", job], check=True)


def _num_restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # what `instantiate` wraps says more than the wrapping
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


if __name__ == "__main__":
    Job(sys.argv[1])()
