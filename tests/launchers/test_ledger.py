"""The ledger knows the state of a run, whatever happened to its job."""

import subprocess
import threading
from pathlib import Path

import pytest

from launchers import job_states
from launchers.cells import compose
from launchers.job_states import PENDING, RUNNING, local_job_id
from launchers.ledger import RESTARTABLE, Entry, Ledger
from launchers.lock import locked
from launchers.status import RunStatus

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def cell():
    (cell,) = compose(["-m", "hydra/launcher=local", "seed=3"], CONF)
    return cell


@pytest.fixture
def entry(tmp_path, cell) -> Entry:
    """The ledger's entry of a run that was never submitted."""
    return Ledger(tmp_path / "default/ledger").add([cell])[0]


def state(entry: Entry, job_state: str | None = RUNNING) -> str:
    return entry.state(lambda job: job_state).name


def test_a_run_goes_from_missing_to_done(entry):
    assert state(entry) == "missing"
    attempt = entry.add_attempt()
    attempt.write("job", job="7_0")
    assert state(entry, PENDING) == "queued"
    assert attempt.begin("7_0") is None
    assert state(entry) == "running"
    attempt.write("state", state="done", job="7_0")
    assert state(entry, "COMPLETED") == "done"


@pytest.mark.parametrize("end", ["TIMEOUT", "NODE_FAIL", "ended"])
def test_a_run_whose_job_is_gone_is_lost_and_can_be_started_again(entry, end):
    attempt = entry.add_attempt()
    attempt.write("job", job="7_0")
    assert state(entry, end) == "lost"
    attempt.begin("7_0")
    assert state(entry, end) == "lost"
    assert end in entry.state(lambda job: end).reason
    assert "lost" in RESTARTABLE


def test_a_job_that_slurm_requeues_is_preempted_until_it_runs(entry):
    attempt = entry.add_attempt()
    attempt.begin("7_0")
    assert state(entry, PENDING) == "preempted"
    assert attempt.begin("7_0") is None


def test_a_run_that_saved_and_was_not_requeued_is_preempted_and_can_be_started_again(entry):
    attempt = entry.add_attempt()
    attempt.write("state", state="preempted", job="7_0", reason="SIGUSR2; saved at step 5")
    assert RunStatus(entry, entry.state(lambda job: PENDING)).can_start(RESTARTABLE) is False
    end = entry.state(lambda job: "COMPLETED")
    assert (end.name, end.reason) == ("preempted", "SIGUSR2; saved at step 5")
    assert RunStatus(entry, end).can_start(RESTARTABLE) is True


def test_a_submission_that_crashed_before_it_knew_its_job_is_lost(entry):
    entry.add_attempt()
    assert state(entry) == "lost"


def test_a_job_that_this_host_cannot_see_is_never_called_lost(entry):
    entry.add_attempt().begin("local/elsewhere/1/1")
    assert entry.state(job_states.lookup()).name == "running"


def test_a_job_begins_only_the_newest_attempt(entry):
    old, new = entry.add_attempt(), entry.add_attempt()
    assert "submitted again, as attempt 2" in old.begin("7_0")
    assert new.begin("8_0") is None


def test_a_job_does_not_begin_a_run_that_is_done_or_cancelled(entry):
    attempt = entry.add_attempt()
    attempt.write("cancelled", reason="by hand")
    assert attempt.begin("7_0") == "it was cancelled"
    assert state(entry, "CANCELLED") == "cancelled"
    attempt = entry.add_attempt()
    attempt.write("state", state="done", job="7_0")
    assert attempt.begin("7_0") == "it is done"


def test_the_first_rank_that_fails_gives_the_reason(entry):
    attempt = entry.add_attempt()
    attempt.fail("7_0", "Traceback: no box", "no box")
    attempt.fail("7_0", "Traceback: connection lost", "connection lost")
    assert entry.state(lambda job: "FAILED").reason == "no box"


def test_an_unfinished_file_of_a_crash_changes_nothing(entry):
    attempt = entry.add_attempt()
    (attempt.folder / ".state.json.host.1.1").write_text('{"state": "do')
    assert state(entry) == "lost"


def test_attempts_that_are_added_at_the_same_time_get_different_numbers(entry):
    def add_attempt():
        with locked(entry.folder.parent):
            entry.add_attempt()

    threads = [threading.Thread(target=add_attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entry.newest_attempt().number == 8


def test_a_local_process_is_identified_by_its_start_time_and_not_by_its_number_alone():
    job = local_job_id()
    assert job_states.lookup()(job) == RUNNING
    assert job_states.lookup()(job.rpartition("/")[0] + "/1") == "ended"


def test_a_local_process_that_ended_before_its_start_time_was_read_has_ended():
    process = subprocess.Popen(["true"])
    process.wait()
    job = local_job_id(process.pid)
    assert job.endswith("/")
    assert job_states.lookup()(job) == "ended"
