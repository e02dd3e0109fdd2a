"""What the ledger says of a run, whatever happened to its job."""

import threading
from pathlib import Path

import pytest

from launchers import jobs
from launchers.cells import compose
from launchers.ledger import OPEN, Ledger, locked
from launchers.status import RunStatus

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture
def entry(tmp_path):
    """The ledger's entry of a run of which nothing has happened yet."""
    (cell,) = compose(["-m", "hydra/launcher=local", f"outputs={tmp_path}", "seed=3"], CONF)
    return Ledger(tmp_path / "default/ledger").add([cell])[0]


def state(entry, slurm_says: str | None = "at work") -> str:
    return entry.state(lambda job: slurm_says).name


def test_a_run_goes_from_missing_to_done(entry):
    assert state(entry) == "missing"
    attempt = entry.claim()
    attempt.write("job", job="7_0")
    assert state(entry, "waiting") == "queued"
    assert attempt.begin("7_0") is None
    assert state(entry) == "running"
    attempt.write("state", state="done", job="7_0")
    assert state(entry, "COMPLETED") == "done"


@pytest.mark.parametrize("ended", ["TIMEOUT", "NODE_FAIL", "ended"])
def test_a_run_whose_job_is_gone_is_lost_and_may_be_started_again(entry, ended):
    attempt = entry.claim()
    attempt.write("job", job="7_0")
    assert state(entry, ended) == "lost"
    attempt.begin("7_0")
    assert state(entry, ended) == "lost"
    assert ended in entry.state(lambda job: ended).reason
    assert "lost" in OPEN


def test_a_job_that_slurm_starts_again_is_preempted_until_it_runs(entry):
    attempt = entry.claim()
    attempt.begin("7_0")
    assert state(entry, "waiting") == "preempted"
    assert attempt.begin("7_0") is None


def test_a_run_that_saved_and_did_not_queue_itself_again_is_preempted_and_may_be_started_again(entry):
    attempt = entry.claim()
    attempt.write("state", state="preempted", job="7_0", reason="SIGUSR2; saved at step 5")
    assert RunStatus(entry, entry.state(lambda job: "waiting")).may_start(OPEN) is False
    ended = entry.state(lambda job: "COMPLETED")
    assert (ended.name, ended.reason) == ("preempted", "SIGUSR2; saved at step 5")
    assert RunStatus(entry, ended).may_start(OPEN) is True


def test_a_submission_that_crashed_before_it_knew_its_job_is_lost(entry):
    entry.claim()
    assert state(entry) == "lost"


def test_a_job_that_cannot_be_seen_is_never_called_lost(entry):
    entry.claim().begin("local/elsewhere/1/1")
    assert entry.state(jobs.seen()).name == "running"


def test_a_job_begins_only_the_newest_attempt(entry):
    old, new = entry.claim(), entry.claim()
    assert "submitted again, as attempt 2" in old.begin("7_0")
    assert new.begin("8_0") is None


def test_a_job_does_not_begin_what_is_done_or_cancelled(entry):
    attempt = entry.claim()
    attempt.write("cancelled", reason="by hand")
    assert attempt.begin("7_0") == "it was cancelled"
    assert state(entry, "CANCELLED") == "cancelled"
    attempt = entry.claim()
    attempt.write("state", state="done", job="7_0")
    assert attempt.begin("7_0") == "it is done"


def test_the_first_rank_that_fails_says_why(entry):
    attempt = entry.claim()
    attempt.fail("7_0", "Traceback: no box", "no box")
    attempt.fail("7_0", "Traceback: connection lost", "connection lost")
    assert entry.state(lambda job: "FAILED").reason == "no box"


def test_an_unfinished_file_of_a_crash_changes_nothing(entry):
    attempt = entry.claim()
    (attempt.folder / ".state.json.host.1.1").write_text('{"state": "do')
    assert state(entry) == "lost"


def test_a_run_that_is_claimed_by_many_at_once_is_claimed_once_each(entry):
    def claim():
        with locked(entry.folder.parent):
            entry.claim()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entry.newest().number == 8


def test_the_process_of_a_run_is_known_by_its_start_and_not_by_its_number_alone():
    here = jobs.this_process()
    assert jobs.seen()(here) == "at work"
    assert jobs.seen()(here.rpartition("/")[0] + "/1") == "ended"
