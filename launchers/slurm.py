"""The launcher that submits runs to SLURM as job arrays, through submitit. The command does not wait for the jobs."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bbu_train.errors import InputError
from bbu_train.runtime import preemption
from bbu_train.runtime.file_names import printable
from launchers.job import Job
from launchers.job_states import run_slurm_command
from launchers.ledger import Attempt, Ledger
from launchers.lock import locked
from launchers.status import read_statuses

FORBIDDEN = re.compile(r"[%\\\x00-\x1f\x7f\ud800-\udfff]")
"""What a path of a job's log cannot hold: patterns such as %j and %A, an escape, and what no batch script can hold."""


class Slurm:
    """`cluster` is a file of conf/cluster. With `wait` the command stays until the last run has ended."""

    can_search = True
    handles_signals = False
    works_under_torchrun = False

    def __init__(self, cluster: Mapping[str, Any], wait: bool):
        self.cluster = cluster
        self.wait = wait

    def check(self, ledger: Ledger) -> None:
        """Raise InputError if SLURM or submitit would take the path of the ledger for another one."""
        path = str(ledger.folder.absolute())
        if found := sorted(set(FORBIDDEN.findall(path))):
            raise InputError(
                f"{printable(path)} holds {printable(' and '.join(found))}, which SLURM does not keep as it is in the "
                "paths of logs. Give outputs= and sweep= without such characters. Nothing was submitted."
            )

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        """Submit a new attempt at each of `runs` that is in one of `states`.

        They become one array, or several if the cluster's longest array is too short. Raises InputError if SLURM
        rejects one, or for a ledger that `check` refuses.
        """
        self.check(ledger)
        with locked(ledger.folder):
            entries = [status.entry for status in read_statuses(ledger, runs) if status.can_start(states)]
            if not entries:
                return 0
            size = _max_array_size()
            arrays = [entries[start : start + size] for start in range(0, len(entries), size)]
            for index, array in enumerate(arrays):
                attempts = [entry.add_attempt() for entry in array]
                jobs = self._submit_array(ledger, attempts, self._array_parallelism(index, len(arrays)))
                print(f"Submitted {len(jobs)} of {len(runs)} runs as job {jobs[0].partition('_')[0]}.", flush=True)
        return 0

    def start_controller(self, attempt: Attempt, ledger: Ledger, cluster: Mapping[str, Any]) -> None:
        """Submit the job that makes a search's trials. `cluster` replaces settings of the cluster's file."""
        self.check(ledger)
        launcher = Slurm({**self.cluster, **cluster}, self.wait)
        (job,) = launcher._submit_array(ledger, [attempt], num_parallel=1)
        print(f"Submitted the search as job {job}.", flush=True)

    def _submit_array(self, ledger: Ledger, attempts: Sequence[Attempt], num_parallel: int) -> list[str]:
        """Submit one array and record its job ids, or why it was not submitted."""
        try:
            jobs = self._submit(ledger, attempts, num_parallel)
        except BaseException as error:
            for attempt in attempts:
                attempt.write("cancelled", reason=f"not submitted: {error}")
            raise
        for attempt, job in zip(attempts, jobs, strict=True):
            attempt.write("job", job=job)
        return jobs

    def _array_parallelism(self, index: int, num_arrays: int) -> int:
        """Return this array's share of max_parallel, at least 1: SLURM limits each array separately."""
        share, remainder = divmod(self.cluster["max_parallel"], num_arrays)
        return max(1, share + (index < remainder))

    def _submit(self, ledger: Ledger, attempts: Sequence[Attempt], num_parallel: int) -> list[str]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            executor = SlurmExecutor(
                folder=ledger.folder.absolute() / "jobs", max_num_timeout=self.cluster["max_requeues"]
            )
            executor.update_parameters(**self._options(ledger.sweep), array_parallelism=num_parallel)
            with _without_restart_count():
                jobs = executor.submit_array([Job(str(attempt.folder)) for attempt in attempts])
        except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
            preemption.end_sweep_if_asked()  # a signal to a controller's job also ends the sbatch that it started
            raise InputError(f"SLURM rejected a job array of {len(attempts)} runs. {error}".strip()) from error
        return [job.job_id for job in jobs]

    def _options(self, sweep: str) -> dict[str, Any]:
        """Return the parameters of submitit's executor."""
        cluster = self.cluster
        options = {
            "job_name": f"bbu-{sweep}",
            "partition": cluster["partition"],
            "account": cluster["account"],
            "qos": cluster["qos"],
            "time": cluster["time_minutes"],
            "nodes": cluster["nodes"],
            "ntasks_per_node": cluster["tasks_per_node"],
            "gpus_per_node": cluster["gpus_per_node"] or None,
            "cpus_per_task": cluster["cpus_per_task"],
            "mem": f"{cluster['memory_gib']}G" if cluster["memory_gib"] else None,
            "signal_delay_s": cluster["grace_seconds"],
            "setup": list(cluster["setup"]),
            "additional_parameters": {"requeue": True, **cluster["additional"]},
            "stderr_to_stdout": True,
            # When a rank fails, the others would wait for it until the time limit: end them.
            "srun_args": ["--kill-on-bad-exit=1"],
        }
        return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _without_restart_count() -> Iterator[None]:
    """Hide SLURM_RESTART_COUNT: sbatch passes the environment on, and a job would count its submitter's requeues."""
    count = os.environ.pop("SLURM_RESTART_COUNT", None)
    try:
        yield
    finally:
        if count is not None:
            os.environ["SLURM_RESTART_COUNT"] = count


def _max_array_size() -> int:
    """Return the number of jobs that an array of this cluster may have: indices are below MaxArraySize."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_slurm_command("scontrol", "show", "config"), re.MULTILINE)
    if match is None or int(match[1]) < 1:
        raise InputError(
            "scontrol show config gives no MaxArraySize, or 0: this cluster has no job arrays, which a sweep needs."
        )
    return int(match[1])
