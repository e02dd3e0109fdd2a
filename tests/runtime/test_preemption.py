"""A signal asks a run to end: what is saved, that the resumed run is the same, and how data workers end."""

import json
import multiprocessing
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from forked import run_ranks, start_program
from whole_runs import assert_equal_runs, command, leave_out_plots, rows, run_here

from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.errors import Interrupted, Preempted
from bbu_train.runtime import preemption

STEP = "bbu_train.training.recovery.train_step"  # called once in each step
EVALUATION_BATCH = "bbu_train.training.validation.predict"
# An evaluation has two batches and uses the averaged weights. Step 3 is saved between two evaluations.
OFTEN = "eval_batch_size=2", "eval_every=4", "checkpoint.keep_last=9", "average=ema"


@contextmanager
def signal_in(function, nth, number):
    """Let this process send itself a signal in the nth call of a function, named by its path."""
    original, calls = pkgutil.resolve_name(function), []

    def sending(*arguments, **named):
        calls.append(arguments)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, sending)
        yield


@pytest.fixture(scope="module")
def run_until_signal(run):
    """A function that starts or resumes a run, sends a signal in it, and returns the Preempted that ended it."""
    handlers = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    preemption.install()

    def run_until_signal(function, nth, *run_arguments, number=signal.SIGUSR2):
        with signal_in(function, nth, number), pytest.raises(Preempted) as ended:
            run(*run_arguments)
        preemption._received.clear()  # a real run would be resumed by another process
        return ended.value

    yield run_until_signal
    for number, handler in handlers.items():
        signal.signal(number, handler)


def mlflow_runs(outputs):
    """Return a client and all runs in the MLflow store of these tests."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{outputs}/asked.db")
    return client, client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@pytest.fixture(scope="module")
def interrupted_run(run, run_until_signal, outputs, empty_store):
    """The folder of a run that was asked to end four times, in steps and evaluations, and what was observed between."""
    shutil.copy(empty_store, outputs / "asked.db")
    overrides = "asked", *OFTEN, "tracker=mlflow", f"tracker.mlflow.uri=sqlite:///{outputs}/asked.db"
    ended = [run_until_signal(EVALUATION_BATCH, 1, *overrides), run_until_signal(STEP, 2, *overrides)]
    ended.append(run_until_signal(EVALUATION_BATCH, 1, *overrides, number=signal.SIGINT))
    observed = {"steps logged": [row["step"] for row in rows(outputs / "smoke" / "asked")]}
    [stored] = mlflow_runs(outputs)[1]
    observed["in MLflow"] = stored.info.status, stored.data.tags["state"]
    ended.append(run_until_signal(EVALUATION_BATCH, 3, *overrides, number=signal.SIGTERM))
    observed["ended"] = [(preempted.step, preempted.signal) for preempted in ended]
    return run(*overrides), observed


def manifest(folder, step):
    return json.loads((folder / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())


def test_a_run_that_was_asked_to_end_several_times_equals_an_uninterrupted_one(run, interrupted_run):
    (folder, observed), uninterrupted = interrupted_run, run("never-asked", *OFTEN)
    assert observed["ended"] == [(0, "SIGUSR2"), (2, "SIGUSR2"), (4, "SIGINT"), (6, "SIGTERM")]
    assert_equal_runs(folder, uninterrupted)
    assert manifest(folder, 3)["metrics"] == manifest(uninterrupted, 3)["metrics"] == {}, "it was not evaluated"
    assert "eval/loss/total" in manifest(folder, 4)["metrics"], (
        "it was saved when the signal came, and again after its evaluation"
    )
    assert manifest(folder, 6)["metrics"] == manifest(uninterrupted, 6)["metrics"]
    assert "eval/loss/total" in manifest(folder, 6)["metrics"]


def test_an_abandoned_evaluation_logs_nothing(interrupted_run):
    assert interrupted_run[1]["steps logged"] == [0, 1, 2, 3, 4]


def test_the_same_mlflow_run_is_resumed_and_has_every_point_once(interrupted_run, outputs):
    folder, observed = interrupted_run
    assert observed["in MLflow"] == ("SCHEDULED", "preempted")
    client, [stored] = mlflow_runs(outputs)
    assert (stored.info.status, stored.data.tags["state"]) == ("FINISHED", "done")
    for metric in ("loss/total", "eval/loss/total"):
        points = [(point.step, point.value) for point in client.get_metric_history(stored.info.run_id, metric)]
        assert points == [(row["step"], row[metric]) for row in rows(folder) if metric in row]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("function", ["data.cabinets.synthetic.load", "model.qwen25vl.build"])
def test_a_signal_while_a_run_is_prepared_ends_it_at_once(run_until_signal, outputs, monkeypatch, function, number):
    """Hydra turns any Exception of a component into its own, and the checks between the phases would come later."""
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("bbu_train.train.raise_if_asked_to_end", lambda step, cfg: None)
    ended = run_until_signal(f"bbu_train.{function}", 1, "not-begun", number=number)
    assert ended.step == 0 and str(ended).endswith("ended the run before its first step: nothing was trained.")
    assert not (outputs / "smoke" / "not-begun").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_step_that_is_saved_already_is_not_saved_again(run_until_signal, monkeypatch):
    saved, save = [], LocalCheckpoints.save

    def record(self, step, *others):
        saved.append(step)
        return save(self, step, *others)

    monkeypatch.setattr(LocalCheckpoints, "save", record)
    assert run_until_signal(STEP, 3, "saved-before", "eval_every=null").step == 3
    assert saved == [3]


def test_a_second_ctrl_c_ends_a_run_at_once(run, monkeypatch):
    original, handler = pkgutil.resolve_name(STEP), signal.getsignal(signal.SIGINT)

    def interrupted_in_the_second_step(step, *arguments):
        for _ in range(2 if arguments and step_is_second(arguments) else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return original(step, *arguments)

    calls = []

    def step_is_second(arguments):
        calls.append(arguments)
        return len(calls) == 2

    monkeypatch.setattr(STEP, interrupted_in_the_second_step)
    with pytest.raises(Interrupted, match=r"Interrupted after step 1; no step is saved\."):
        run("interrupted-twice", "eval_every=null", "save_every=null")
    preemption._received.clear()
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_torchrun_sends_on_is_no_second_ctrl_c(monkeypatch, capfd):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    now = [0.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    with preemption.signals_set_flag(lambda: "it ends after this step"), pytest.raises(KeyboardInterrupt):
        for now[0] in (0.0, 1.0, 3.0):
            os.kill(os.getpid(), signal.SIGINT)
            assert preemption.signal_name() == "SIGINT"
    assert now[0] == 3.0
    assert capfd.readouterr().err == "\nit ends after this step\n"
    preemption._received.clear()


# Processes


def wait_until(condition, description):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {description}"
        time.sleep(0.01)


def wait_for_rows(folder, num_rows):
    log = folder / "metrics.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= num_rows, f"{log} has {num_rows} rows")


def start(*arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def live_processes(session):
    """Return the processes of a session that are alive."""
    stats = [path.read_text().rpartition(") ") for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [process for process, _, fields in stats if fields.split()[0] != "Z" and int(fields.split()[3]) == session]


def test_two_signals_to_every_process_of_a_job_end_it_with_a_saved_step_and_no_worker_left(run, uninterrupted, outputs):
    folder = outputs / "smoke" / "whole-group"
    output = folder.with_suffix(".txt")
    job = start_program(command(outputs, folder.name, "num_workers=2"), output)
    wait_for_rows(folder, 2)
    for _ in range(2):
        os.killpg(job.pid, signal.SIGTERM)
        time.sleep(0.05)
    job.join()
    text = output.read_text()
    assert job.exitcode == os.EX_TEMPFAIL, text
    assert "Traceback" not in text
    assert f"which is saved. To resume: python -m bbu_train resume={folder}" in text.splitlines()[-1]
    assert not live_processes(job.pid)
    assert_equal_runs(run(folder.name), uninterrupted)


def start_and_signal(number, *arguments):
    """Start a program, and send it a signal as soon as it handles signals."""
    job = start(*arguments)
    sigusr2_bit = 1 << (signal.SIGUSR2 - 1)
    status = Path(f"/proc/{job.pid}/status")
    wait_until(lambda: int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & sigusr2_bit, "it has a handler")
    job.send_signal(number)
    return job


def test_ctrl_c_during_the_imports_is_one_line(outputs):
    job = start_and_signal(signal.SIGINT, *command(outputs, "none"))
    assert job.communicate(timeout=60)[1] == "Interrupted. Give the same command again.\n"
    assert job.returncode == 130


def test_a_signal_before_torch_is_imported_ends_the_whole_sweep_and_leaves_no_folder(outputs):
    arguments = [argument for argument in command(outputs, "none") if argument != "run=none"]
    job = start_and_signal(signal.SIGUSR2, *arguments, "-m", "seed=1,2", "sweep=early")
    stderr = job.communicate(timeout=60)[1]
    assert job.returncode == os.EX_TEMPFAIL, stderr
    message = "SIGUSR2 ended the sweep: nothing was started. The same command resumes it."
    assert stderr.splitlines().count(message) == 1
    assert not (outputs / "early").exists()


def run_rank(rank, ports, outputs):
    """Run on two ranks, once uninterrupted and once with signals to the second rank: in a step and in an evaluation."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    preemption.install()
    leave_out_plots()

    def run(name):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports.pop())}
        run_here(outputs, name, "eval_batch_size=1", "steps=4")

    run("two-ranks")
    for function, step in ((STEP, 1), (EVALUATION_BATCH, 3)):
        with signal_in(function, 1 if rank else None, signal.SIGUSR2), pytest.raises(Preempted) as ended:
            run("two-ranks-asked")
        assert (ended.value.step, ended.value.signal) == (step, "SIGUSR2")
        preemption._received.clear()
    run("two-ranks-asked")


def free_ports(num_ports):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num_ports)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def test_a_signal_to_one_of_two_ranks_ends_both_after_the_same_step_and_both_resume(outputs):
    run_ranks(run_rank, free_ports(4), outputs)
    assert_equal_runs(outputs / "smoke" / "two-ranks-asked", outputs / "smoke" / "two-ranks", step=4)


# Data workers


def worker(connection):
    preemption.end_with_parent(0)
    connection.send(os.getpid())
    time.sleep(60)


def start_worker():
    context = multiprocessing.get_context("fork")
    parent_end, child_end = context.Pipe()
    with preemption.signals_blocked():
        process = context.Process(target=worker, args=(child_end,), daemon=True)
        process.start()
    parent_end.recv()
    return process


def signal_from_another_process(pid):
    """Send SIGTERM and SIGUSR2."""
    subprocess.run([sys.executable, "-c", f"import os; os.kill({pid}, 15); os.kill({pid}, 12)"], check=True)


def test_a_worker_ends_when_its_parent_terminates_it_and_not_for_others():
    process = start_worker()
    signal_from_another_process(process.pid)
    time.sleep(0.2)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


@pytest.mark.parametrize("is_signalled", [False, True])
def test_an_orphaned_worker_ends_by_itself_and_by_a_signal_from_anyone(is_signalled):
    read_end, write_end = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.write(write_end, str(start_worker().pid).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    orphan = int(os.read(read_end, 100))
    if is_signalled:
        signal_from_another_process(orphan)
    wait_until(lambda: not is_alive(orphan), "the orphan has ended")


def test_a_process_that_replaces_this_one_knows_of_the_signal_that_came_before(monkeypatch):
    monkeypatch.setattr(preemption, "SIGNALS", ())
    monkeypatch.setattr(preemption, "_received", ["SIGTERM"])
    preemption.hand_over()
    monkeypatch.setattr(preemption, "_received", [])
    preemption.install()
    assert preemption.signal_name() == "SIGTERM"
    assert preemption.HANDED_OVER not in os.environ
