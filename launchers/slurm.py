"""Runs as job arrays of SLURM, submitted through submitit; the command that submits them does not wait for them."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bbu_train.errors import InputError
from bbu_train.runtime import preemption
from launchers import jobs, status
from launchers.job import Job
from launchers.ledger import Attempt, Ledger, locked


class Slurm:
    """`cluster` is a file of conf/cluster. With `wait` the command stays until the last run has ended."""

    def __init__(self, cluster: Mapping[str, Any], wait: bool):
        self.cluster = cluster
        self.wait = wait

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        """Submit a new attempt at each of the runs that is in one of these states: one array, or as many as it takes
        where the cluster's arrays are shorter."""
        with locked(ledger.folder):
            entries = [row.entry for row in status.rows(ledger, runs) if row.may_start(states)]
            if not entries:
                return 0
            longest = _longest_array()
            parts = [entries[i : i + longest] for i in range(0, len(entries), longest)]
            for i, part in enumerate(parts):
                attempts = [entry.claim() for entry in part]
                ids = self._start_array(ledger, attempts, num_parallel=self._share(i, len(parts)))
                print(f"Submitted {len(ids)} of {len(runs)} runs as job {ids[0].partition('_')[0]}.", flush=True)
        return 0

    def control(self, attempt: Attempt, ledger: Ledger, asks: Mapping[str, Any]) -> None:
        """Submit the job that makes a search's trials; it `asks` for this instead of what the cluster's file says."""
        (job,) = Slurm({**self.cluster, **asks}, self.wait)._start_array(ledger, [attempt], num_parallel=1)
        print(f"Submitted the search as job {job}.", flush=True)

    def _start_array(self, ledger: Ledger, attempts: Sequence[Attempt], num_parallel: int) -> list[str]:
        try:
            ids = self._submit(ledger, attempts, num_parallel)
        except BaseException as error:
            for attempt in attempts:
                attempt.write("cancelled", reason=f"not submitted: {error}")
            raise
        for attempt, job in zip(attempts, ids, strict=True):
            attempt.write("job", job=job)
        return ids

    def _share(self, i: int, num_arrays: int) -> int:
        """Of max_parallel, which SLURM keeps for each array by itself, the part of array `i`: at least 1."""
        whole, rest = divmod(self.cluster["max_parallel"], num_arrays)
        return max(1, whole + (i < rest))

    def _submit(self, ledger: Ledger, attempts: Sequence[Attempt], num_parallel: int) -> list[str]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            executor = SlurmExecutor(
                folder=ledger.folder.absolute() / "jobs", max_num_timeout=self.cluster["max_requeues"]
            )
            executor.update_parameters(**self._options(ledger.sweep), array_parallelism=num_parallel)
            with _first_start():
                submitted = executor.submit_array([Job(str(attempt.folder)) for attempt in attempts])
        except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
            preemption.end_sweep_if_asked()  # SLURM's signals go to sbatch too, where a search submits
            raise InputError(f"SLURM took no job of the sweep. {error}".strip()) from error
        return [job.job_id for job in submitted]

    def _options(self, sweep: str) -> dict[str, Any]:
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
            # A rank that fails takes the others with it, which would wait for it until the time limit.
            "srun_args": ["--kill-on-bad-exit=1"],
        }
        return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _first_start() -> Iterator[None]:
    """sbatch hands its environment on: a job would count the requeues of the one that submits it as its own."""
    count = os.environ.pop("SLURM_RESTART_COUNT", None)
    try:
        yield
    finally:
        if count is not None:
            os.environ["SLURM_RESTART_COUNT"] = count


def _longest_array() -> int:
    """How many jobs an array of this cluster may have: its indices end below MaxArraySize."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", jobs.asked("scontrol", "show", "config"), re.MULTILINE)
    if found is None or int(found[1]) < 1:
        raise InputError("scontrol show config names no MaxArraySize, or 0: this cluster takes no job arrays.")
    return int(found[1])
