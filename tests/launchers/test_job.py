"""A job runs one attempt, records how it ended, and requeues itself after a preemption."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from yaml import YAMLError

import bbu_train.train
from bbu_train.errors import InputError, Preempted
from launchers.cells import compose
from launchers.job import Job
from launchers.ledger import Attempt, Ledger

CONF = Path(__file__).resolve().parents[2] / "conf"
OVERRIDES = ("hydra/launcher=local", "head=none", "cluster.max_requeues=2")
pytestmark = pytest.mark.usefixtures("own_process")


@pytest.fixture
def attempt(tmp_path) -> Attempt:
    cells = compose(["-m", *OVERRIDES, f"outputs={tmp_path}"], CONF)
    return Ledger(tmp_path / "default/ledger").add(cells)[0].add_attempt()


@pytest.fixture
def scontrol_commands(monkeypatch, tmp_path) -> Callable[[], list[str]]:
    """This process looks like SLURM job 7_3; the function returns the commands that it has given to scontrol."""
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


def run(attempt: Attempt, monkeypatch: pytest.MonkeyPatch, train: Callable[[DictConfig], None]) -> dict:
    """Run a job that trains with `train`; return its state.json."""
    monkeypatch.setattr(bbu_train.train, "train", train)
    Job(str(attempt.folder))()
    return attempt.read("state")


def raises(error: BaseException) -> Callable[[DictConfig], None]:
    def train(cfg: DictConfig) -> None:
        raise error

    return train


def test_a_job_trains_the_config_of_its_run_and_records_that_it_is_done(attempt, monkeypatch):
    trained = []

    def train(cfg):
        choices = HydraConfig.get().runtime.choices  # environment.json has them, for resume=<folder>
        trained.append((cfg.run, cfg.get("launchers"), choices["head"], sys.argv[1:]))

    assert run(attempt, monkeypatch, train)["state"] == "done"
    assert trained == [(attempt.entry_folder.name, None, "none", [*OVERRIDES, f"outputs={Path.cwd()}"])]


def test_a_job_that_fails_records_its_traceback_and_raises_its_error(attempt, monkeypatch):
    with pytest.raises(RuntimeError):
        run(attempt, monkeypatch, raises(RuntimeError("no box\nat all")))
    state = attempt.read("state")
    assert (state["state"], state["reason"]) == ("failed", "RuntimeError: no box")
    assert "Traceback" in state["traceback"]


def test_a_job_whose_config_cannot_be_read_has_failed(attempt, monkeypatch):
    (attempt.entry_folder / "config.yaml").write_text("seed: [")
    with pytest.raises(YAMLError):
        run(attempt, monkeypatch, raises(AssertionError("it trained")))
    assert attempt.read("state")["state"] == "failed"


def test_a_job_that_is_interrupted_by_hand_is_cancelled(attempt, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(attempt, monkeypatch, raises(KeyboardInterrupt()))
    assert attempt.state(lambda job: "ended").name == "cancelled"


def test_a_preempted_job_requeues_itself_at_most_max_requeues_times(attempt, monkeypatch, scontrol_commands):
    preempted = raises(Preempted(5, "SIGUSR2", "folder"))
    for restart in (0, 1):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        state = run(attempt, monkeypatch, preempted)
        assert (state["state"], state["step"], state["job"]) == ("preempted", 5, "7_3")
    assert scontrol_commands() == ["requeue 7_3", "requeue 7_3"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    run(attempt, monkeypatch, preempted)
    assert len(scontrol_commands()) == 2
    end = attempt.state(lambda job: "COMPLETED")
    reason = "SIGUSR2; saved at step 5; requeued 2 times, as often as cluster.max_requeues allows"
    assert (end.name, end.reason, end.has_live_job) == ("preempted", reason, False)


def test_a_job_whose_run_saved_a_step_after_an_interrupt_is_cancelled(attempt, monkeypatch, scontrol_commands):
    run(attempt, monkeypatch, raises(Preempted(5, "SIGINT", "folder")))
    end = attempt.state(lambda job: "COMPLETED")
    assert (end.name, end.reason) == ("cancelled", "interrupted by hand; saved at step 5")
    assert scontrol_commands() == []


def test_a_cancelled_job_does_not_requeue_itself(attempt, monkeypatch, scontrol_commands):
    def cancelled_while_training(cfg):
        attempt.write("cancelled", reason="by hand")
        raise Preempted(5, "SIGTERM", "folder")

    assert run(attempt, monkeypatch, cancelled_while_training)["state"] == "preempted"
    assert scontrol_commands() == []
    assert attempt.state(lambda job: "CANCELLED").name == "cancelled"


def test_a_job_that_must_not_begin_exits_without_training(attempt, monkeypatch):
    attempt.write("cancelled", reason="by hand")
    with pytest.raises(SystemExit, match="it was cancelled"):
        run(attempt, monkeypatch, raises(AssertionError("it trained")))
    assert attempt.read("state") == {}


def test_a_job_whose_data_has_changed_since_its_sweep_was_started_does_not_train(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text('{"images": ["a.png"], "objects": []}')
    cells = compose(["-m", *OVERRIDES, "data=jsonl", f"data.root={data}", f"outputs={tmp_path}"], CONF)
    attempt = Ledger(tmp_path / "default/ledger").add(cells)[0].add_attempt()
    assert run(attempt, monkeypatch, lambda cfg: None)["state"] == "done"
    (data / "train.jsonl").write_text('{"images": ["b.png"], "objects": []}')
    attempt = Ledger(tmp_path / "default/ledger").entries()[0].add_attempt()
    with pytest.raises(InputError, match="has changed since its sweep was started"):
        run(attempt, monkeypatch, raises(AssertionError("it trained")))
