"""Asked to end by a signal: what is saved, that the run goes on as if nothing had been, and what becomes of workers."""

import json
import multiprocessing
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from whole_runs import assert_equal_runs, command, rows, run_here

from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.errors import Preempted
from bbu_train.runtime import preemption

A_STEP = "bbu_train.train.rows.losses"  # called once in each
A_BATCH_OF_AN_EVALUATION = "bbu_train.training.validation.predict"
# Two batches an evaluation, in which the model has the average; step 3 is saved between two of them.
OFTEN = "eval_batch_size=2", "eval_every=4", "checkpoint.keep_last=9", "average=ema"


@contextmanager
def signal_in(where, nth, number):
    """This process sends itself a signal in the nth call of a function of ours."""
    original, calls = pkgutil.resolve_name(where), []

    def sending(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as here:
        here.setattr(where, sending)
        yield


@pytest.fixture(scope="module")
def asked_in(run):
    """A function that starts a run, or goes on with it, and says how a signal ended it."""
    handlers = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    preemption.install()

    def asked_in(where, nth, *run_of, number=signal.SIGUSR2):
        with signal_in(where, nth, number), pytest.raises(Preempted) as ended:
            run(*run_of)
        preemption._received.clear()  # what goes on is another process
        return ended.value

    yield asked_in
    for number, handler in handlers.items():
        signal.signal(number, handler)


def mlflow_runs(outputs):
    """Every run that MLflow has of these tests."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{outputs}/asked.db")
    return client, client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@pytest.fixture(scope="module")
def asked_often(run, asked_in, outputs):
    """The folder of a whole run that was asked to end four times, in steps and in evaluations, and what was seen."""
    overrides = "asked", *OFTEN, "tracker=mlflow", f"tracker.mlflow.uri=sqlite:///{outputs}/asked.db"
    ended = [asked_in(A_BATCH_OF_AN_EVALUATION, 1, *overrides), asked_in(A_STEP, 2, *overrides)]
    ended.append(asked_in(A_BATCH_OF_AN_EVALUATION, 1, *overrides))
    seen = {"steps logged": [row["step"] for row in rows(outputs / "smoke" / "asked")]}
    [stored] = mlflow_runs(outputs)[1]
    seen["in MLflow"] = stored.info.status, stored.data.tags["state"]
    ended.append(asked_in(A_BATCH_OF_AN_EVALUATION, 3, *overrides, number=signal.SIGTERM))
    seen["ended"] = [(its.step, its.signal) for its in ended]
    return run(*overrides), seen


def manifest(folder, step):
    return json.loads((folder / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())


def test_a_run_that_is_asked_to_end_again_and_again_equals_one_that_never_was(run, asked_often):
    (folder, seen), uninterrupted = asked_often, run("never-asked", *OFTEN)
    assert seen["ended"] == [(0, "SIGUSR2"), (2, "SIGUSR2"), (4, "SIGUSR2"), (6, "SIGTERM")]
    assert_equal_runs(folder, uninterrupted)
    assert manifest(folder, 3)["metrics"] == manifest(uninterrupted, 3)["metrics"] == {}, "it was not evaluated"
    assert "eval/loss/total" in manifest(folder, 4)["metrics"], "saved when it was asked, and again with its evaluation"
    assert manifest(folder, 6)["metrics"] == manifest(uninterrupted, 6)["metrics"]
    assert "eval/loss/total" in manifest(folder, 6)["metrics"]


def test_of_an_evaluation_that_is_abandoned_nothing_is_logged(asked_often):
    assert asked_often[1]["steps logged"] == [0, 1, 2, 3, 4]


def test_the_same_run_of_mlflow_goes_on_with_every_point_once(asked_often, outputs):
    folder, seen = asked_often
    assert seen["in MLflow"] == ("SCHEDULED", "preempted")
    client, [stored] = mlflow_runs(outputs)
    assert (stored.info.status, stored.data.tags["state"]) == ("FINISHED", "done")
    for metric in ("loss/total", "eval/loss/total"):
        points = [(point.step, point.value) for point in client.get_metric_history(stored.info.run_id, metric)]
        assert points == [(row["step"], row[metric]) for row in rows(folder) if metric in row]


def test_a_step_that_is_saved_already_is_not_saved_again(asked_in, monkeypatch):
    saved, save = [], LocalCheckpoints.save
    monkeypatch.setattr(LocalCheckpoints, "save", lambda self, step, *its: saved.append(step) or save(self, step, *its))
    assert asked_in(A_STEP, 3, "saved-before", "eval_every=null").step == 3
    assert saved == [3]


# Processes


def wait_until(happened, what):
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def wait_for_rows(folder, number):
    log = folder / "metrics.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= number, f"{log} has {number} rows")


def start(*arguments):
    return subprocess.Popen([sys.executable, *arguments], start_new_session=True, stderr=subprocess.PIPE, text=True)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def of_session(session):
    """The processes of a session that still live."""
    stats = [path.read_text().rpartition(") ") for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [head for head, _, rest in stats if rest.split()[0] != "Z" and int(rest.split()[3]) == session]


def test_a_signal_to_every_process_of_a_job_twice_ends_it_with_a_saved_step_and_no_worker_left(
    run, uninterrupted, outputs
):
    folder = outputs / "smoke" / "whole-group"
    job = start(*command(outputs, folder.name, "num_workers=2"))
    wait_for_rows(folder, 2)
    for _ in range(2):
        os.killpg(job.pid, signal.SIGTERM)
        time.sleep(0.05)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == os.EX_TEMPFAIL, said
    assert "Traceback" not in said
    assert f"which is saved. To go on: python -m bbu_train resume={folder}" in said.splitlines()[-1]
    assert not of_session(job.pid)
    assert_equal_runs(run(folder.name), uninterrupted)


def test_a_signal_before_torch_is_there_ends_the_whole_sweep_and_leaves_no_folder(outputs):
    arguments = [argument for argument in command(outputs, "none") if argument != "run=none"]
    job = start(*arguments, "-m", "seed=1,2", "sweep=early")
    caught = 1 << (signal.SIGUSR2 - 1)
    status = Path(f"/proc/{job.pid}/status")
    wait_until(lambda: int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & caught, "a handler is there")
    job.send_signal(signal.SIGUSR2)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == os.EX_TEMPFAIL, said
    said_once = "SIGUSR2 asked the sweep to end: it starts no further run. The same command goes on with it."
    assert said.splitlines().count(said_once) == 1
    assert not (outputs / "early").exists()


def ranks(rank, ports, outputs):
    """A whole run on two ranks, and one of which only the second rank is asked to end: in a step, in an evaluation."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    preemption.install()

    def run(name):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports.pop())}
        run_here(outputs, name, "threads=1", "eval_batch_size=1", "steps=4")

    run("two-ranks")
    for where, step in ((A_STEP, 1), (A_BATCH_OF_AN_EVALUATION, 3)):
        with signal_in(where, 1 if rank else None, signal.SIGUSR2), pytest.raises(Preempted) as ended:
            run("two-ranks-asked")
        assert (ended.value.step, ended.value.signal) == (step, "SIGUSR2")
        preemption._received.clear()
    run("two-ranks-asked")


def free_ports(number):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def test_a_signal_to_one_of_two_ranks_ends_both_after_the_same_step_and_both_go_on(outputs):
    torch.multiprocessing.spawn(ranks, args=(free_ports(4), outputs), nprocs=2)
    assert_equal_runs(outputs / "smoke" / "two-ranks-asked", outputs / "smoke" / "two-ranks", step=4)


# Data workers


def worker(connection):
    preemption.end_with_parent(0)
    connection.send(os.getpid())
    time.sleep(60)


def started_worker():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with preemption.signals_blocked():
        process = context.Process(target=worker, args=(theirs,), daemon=True)
        process.start()
    ours.recv()
    return process


def from_elsewhere(pid):
    subprocess.run([sys.executable, "-c", f"import os; os.kill({pid}, 15); os.kill({pid}, 12)"], check=True)


def test_a_worker_ends_when_its_parent_says_so_and_not_for_another():
    process = started_worker()
    from_elsewhere(process.pid)
    time.sleep(0.2)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


@pytest.mark.parametrize("signalled", [False, True])
def test_a_worker_without_a_parent_ends_by_itself_and_for_anybody(signalled):
    reads, writes = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.write(writes, str(started_worker().pid).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    orphan = int(os.read(reads, 100))
    if signalled:
        from_elsewhere(orphan)
    wait_until(lambda: not is_alive(orphan), "the orphan has ended")
