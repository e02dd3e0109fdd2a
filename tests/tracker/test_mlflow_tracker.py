import logging
import multiprocessing
import shutil
import signal
import sqlite3
import sys
import threading
import time

import pytest
from filelock import FileLock
from tracked_runs import begin, comes_true, expected, log, log_without_end, num_points, points, the_run, trackers

from bbu_train.tracker.jsonl import read_rows
from bbu_train.tracker.mlflow_store import open_client, transaction


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "输出 of 1"


def test_a_finished_run_has_every_point_its_config_and_its_files(outputs):
    both = begin(outputs)
    for step in range(1, 6):
        log(both, step)
    picture = outputs / "losses.png"
    picture.write_bytes(b"picture")
    both[1].artifact(picture)
    inside = both[1].folder / "gallery/step-1.jpg"
    inside.parent.mkdir()
    inside.write_bytes(b"picture")
    both[1].artifact(inside)
    both[1].close("done")
    run = the_run(both)
    assert points(outputs) == expected(range(1, 6))
    assert run.data.params == {"loss.weights.giou": "2", "data.note": "a=b"}
    assert (run.info.status, run.info.run_name, run.data.tags["state"]) == ("FINISHED", "run", "done")
    listed = both[1].stored.client.list_artifacts(run.info.run_id)
    assert [file.path for file in listed] == ["gallery", "losses.png"]
    assert (outputs / "mlflow-artifacts" / run.info.run_id / "artifacts/gallery/step-1.jpg").is_file()
    assert len(list((outputs / "mlflow-artifacts").rglob("losses.png"))) == 1


def test_a_killed_run_goes_on_in_the_same_mlflow_run_and_no_point_is_doubled(outputs):
    killed = begin(outputs, flush_values=12)
    for step in range(1, 7):
        log(killed, step)
    assert comes_true(lambda: points(outputs) == expected(range(1, 7)))
    both = begin(outputs, step=3)
    for step in range(4, 9):
        log(both, step)
    both[1].close("done")
    assert points(outputs) == expected(range(1, 9))
    assert the_run(both).info.run_id == killed[1].stored.run_id


def test_points_that_only_metrics_jsonl_has_are_sent_at_resume(outputs):
    killed = begin(outputs)
    for step in range(1, 4):
        log(killed, step)
    assert points(outputs) == []
    begin(outputs, step=3)
    assert points(outputs) == expected(range(1, 4))


def test_an_evaluation_of_a_step_that_mlflow_has_in_part_is_sent_at_resume(outputs):
    killed = begin(outputs, flush_values=2)
    log(killed, 1)
    assert comes_true(lambda: points(outputs) == expected([1]))
    killed[0].log(1, {"eval/ap": 0.5})
    begin(outputs, step=1)
    assert points(outputs) == sorted([*expected([1]), ("run", "eval/ap", 1, 0.5)])


def test_a_store_that_does_not_know_the_run_gets_a_new_one_with_every_point(outputs, tmp_path):
    both = begin(outputs)
    log(both, 1)
    both[1].close("interrupted")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(outputs / "sweep", elsewhere / "sweep")
    both = begin(elsewhere, step=1)
    log(both, 2)
    both[1].close("done")
    assert points(elsewhere) == expected([1, 2])


def test_a_store_that_fails_stops_nothing_and_gets_every_point_once_it_is_back(outputs, caplog):
    (outputs / "mlflow.db.lock").mkdir(parents=True)  # a folder where a file should be
    both = begin(outputs, flush_values=2, flush_seconds=0.1)
    log(both, 1)
    both[1].artifact(both[0].path)
    assert comes_true(lambda: both[1].stored.wait > 0.2)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    (outputs / "mlflow.db.lock").rmdir()
    log(both, 2)
    both[1].close("failed")
    assert points(outputs) == expected([1, 2])
    assert the_run(both).info.status == "FAILED"


def test_what_could_not_be_sent_is_said_at_the_end(outputs, caplog):
    (outputs / "mlflow.db.lock").mkdir(parents=True)
    both = begin(outputs)
    log(both, 1)
    both[1].close("done")
    assert "with 2 values" in caplog.text


def test_values_that_are_not_finite_stay_in_metrics_jsonl_alone(outputs):
    both = begin(outputs)
    log(both, 1, spike=float("inf"), broken=float("nan"))
    both[1].close("done")
    assert points(outputs) == expected([1])


def test_a_step_is_sent_whole_and_many_steps_in_batches_that_the_store_takes(outputs):
    both = begin(outputs, flush_values=10**6)
    for step in range(1, 5):
        for tracker in both:
            tracker.log(step, {f"m{number}": float(number) for number in range(600)})
    both[1].close("done")
    assert len(points(outputs)) == 2400


def test_parameters_that_mlflow_would_refuse_are_cut_and_renamed(outputs):
    many = [f"many.key{number}={number}" for number in range(250)]
    both = begin(outputs, overrides=[*many, f"long={'x' * 9000}", "^head\\.=1", "/a/=2"])
    parameters = the_run(both).data.params
    assert len(parameters) == 253
    assert len(parameters["long"]) == 6000
    assert "9000 characters" in parameters["long"]


def test_the_command_holds_from_any_folder(outputs):
    _, tracker = trackers(outputs)
    assert tracker.command == f"{sys.executable} -m mlflow ui --backend-store-uri 'sqlite:///{outputs}/mlflow.db'"
    assert str(outputs).startswith("/")


def test_a_store_that_is_slow_holds_up_no_step(outputs):
    both = begin(outputs, flush_values=2)
    with sqlite3.connect(outputs / "mlflow.db") as database:
        database.execute("begin exclusive")  # every writer waits
        for step in range(1, 11):
            log(both, step)
        assert both[1].sender.answered < both[1].sender.asked
        database.rollback()
    both[1].close("done")
    assert points(outputs) == expected(range(1, 11))


def is_held_while_forking(hold):
    """Whether a process that is forked while a thread is in `hold` for half a second, is forked before it leaves it."""
    entered, left = threading.Event(), threading.Event()

    def holding():
        with hold:
            entered.set()
            time.sleep(0.5)
            left.set()

    thread = threading.Thread(target=holding)
    thread.start()
    entered.wait()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    child.start()
    held = not left.is_set()
    child.join()
    thread.join()
    return held


def test_a_process_is_forked_between_two_transactions_and_not_within_one():
    assert not is_held_while_forking(transaction("sqlite:///some.db"))


def test_a_server_that_hangs_and_another_process_with_the_store_hold_up_no_fork(outputs):
    assert is_held_while_forking(transaction("http://localhost:5000"))
    outputs.mkdir()
    with FileLock(outputs / "mlflow.db.lock"):
        threading.Thread(target=open_client, args=(f"sqlite:///{outputs}/mlflow.db",), daemon=True).start()
        time.sleep(0.1)
        began = time.monotonic()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        child.start()
        assert time.monotonic() - began < 1
        child.join()


def test_a_run_that_is_killed_while_it_sends_loses_and_doubles_no_point(outputs):
    process = multiprocessing.get_context("spawn").Process(target=log_without_end, args=(outputs,))
    process.start()
    assert comes_true(lambda: (outputs / "mlflow.db").exists() and num_points(outputs) > 100)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    last = read_rows(outputs / "sweep" / "run" / "metrics.jsonl")[-1][1]["step"]
    both = begin(outputs, step=last)
    log(both, last + 1)
    both[1].close("done")
    assert points(outputs) == expected(range(1, last + 2))


def write_a_run(outputs, run, barrier):
    barrier.wait()
    both = begin(outputs, run=run)
    for step in range(1, 21):
        log(both, step)
    both[1].close("done")


def test_four_processes_that_open_a_new_store_at_once_lose_nothing(outputs):
    spawn = multiprocessing.get_context("spawn")
    runs = ["a", "b", "c", "d"]
    barrier = spawn.Barrier(len(runs))
    writers = [spawn.Process(target=write_a_run, args=(outputs, run, barrier)) for run in runs]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * len(runs)
    assert points(outputs) == sorted(point for run in runs for point in expected(range(1, 21), run))
