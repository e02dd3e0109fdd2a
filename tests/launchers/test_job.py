"""What a job does with one attempt: run it, say how it ended, and queue itself again when it was preempted."""

import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from yaml import YAMLError

import bbu_train.train
from launchers.cells import compose
from launchers.job import Job, Preempted
from launchers.ledger import Ledger

CONF = Path(__file__).resolve().parents[2] / "conf"
pytestmark = pytest.mark.usefixtures("own_process")


@pytest.fixture
def attempt(tmp_path):
    given = ["-m", "hydra/launcher=local", f"outputs={tmp_path}", "head=none", "cluster.max_requeues=2"]
    return Ledger(tmp_path / "default/ledger").add(compose(given, CONF))[0].claim()


@pytest.fixture
def requeued(monkeypatch, tmp_path):
    """A job of SLURM, number 7_3, and the commands that it gives to scontrol."""
    pytest.importorskip("submitit")
    log = tmp_path / "scontrol.log"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho running\n")
    for program in ("scontrol", "squeue"):
        (tmp_path / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    environment = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "10", "SLURM_ARRAY_JOB_ID": "7"}
    for name, value in {**environment, "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    return lambda: log.read_text().splitlines() if log.exists() else []


def run(attempt, monkeypatch, train) -> dict:
    monkeypatch.setattr(bbu_train.train, "train", train)
    Job(str(attempt.folder))()
    return attempt.read("state")


def fail(error: BaseException):
    def train(cfg):
        raise error

    return train


def test_a_job_trains_the_config_of_its_run_and_says_that_it_is_done(attempt, monkeypatch):
    trained = []

    def train(cfg):
        choices = HydraConfig.get().runtime.choices  # environment.json has them, for resume=<folder>
        trained.append((cfg.run, cfg.get("launchers"), choices["head"], sys.argv[1:]))

    assert run(attempt, monkeypatch, train)["state"] == "done"
    overrides = ["hydra/launcher=local", f"outputs={Path.cwd()}", "head=none", "cluster.max_requeues=2"]
    assert trained == [(attempt.entry_folder.name, None, "none", overrides)]


def test_a_job_that_fails_keeps_its_traceback_and_its_exit_code(attempt, monkeypatch):
    with pytest.raises(RuntimeError):
        run(attempt, monkeypatch, fail(RuntimeError("no box\nat all")))
    said = attempt.read("state")
    assert (said["state"], said["reason"]) == ("failed", "RuntimeError: no box")
    assert "Traceback" in said["traceback"]


def test_a_job_whose_config_cannot_be_read_has_failed(attempt, monkeypatch):
    (attempt.entry_folder / "config.yaml").write_text("seed: [")
    with pytest.raises(YAMLError):
        run(attempt, monkeypatch, fail(AssertionError("it trained")))
    assert attempt.read("state")["state"] == "failed"


def test_a_job_that_is_interrupted_by_hand_may_be_started_again(attempt, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(attempt, monkeypatch, fail(KeyboardInterrupt()))
    assert attempt.state(lambda job: "ended").name == "cancelled"


def test_a_preempted_job_queues_itself_again_until_the_cap(attempt, monkeypatch, requeued):
    preempted = fail(Preempted(5, "SIGUSR2", "folder"))
    for restart in (0, 1):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        said = run(attempt, monkeypatch, preempted)
        assert (said["state"], said["step"], said["job"]) == ("preempted", 5, "7_3")
    assert requeued() == ["requeue 7_3", "requeue 7_3"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    run(attempt, monkeypatch, preempted)
    assert len(requeued()) == 2
    state = attempt.state(lambda job: "COMPLETED")
    why = "SIGUSR2; saved at step 5; requeued 2 times, as often as cluster.max_requeues allows"
    assert (state.name, state.reason, state.in_hand) == ("preempted", why, False)


def test_a_cancelled_job_does_not_queue_itself_again(attempt, monkeypatch, requeued):
    def cancelled_meanwhile(cfg):
        attempt.write("cancelled", reason="by hand")
        raise Preempted(5, "SIGTERM", "folder")

    assert run(attempt, monkeypatch, cancelled_meanwhile)["state"] == "preempted"
    assert requeued() == []
    assert attempt.state(lambda job: "CANCELLED").name == "cancelled"


def test_a_job_that_must_not_begin_leaves_without_training(attempt, monkeypatch):
    attempt.write("cancelled", reason="by hand")
    with pytest.raises(SystemExit, match="it was cancelled"):
        run(attempt, monkeypatch, fail(AssertionError("it trained")))
    assert attempt.read("state") == {}
