"""The MLflow tracker on an SQLite store: kills, failures, slowness, and several processes at once."""

import logging
import multiprocessing
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time

from filelock import FileLock
from forked import processes
from tracked_runs import becomes_true, begin, count_points, expected_points, log_forever, read_points

from bbu_train.tracker.jsonl import read_rows
from bbu_train.tracker.mlflow_store import absolute_uri, no_fork, open_client


def test_a_finished_run_has_every_point_its_config_and_its_files(outputs):
    tracked = begin(outputs)
    for step in range(1, 6):
        tracked.log(step)
    (tracked.mlflow.folder / "train.log").write_text("done")
    outputs_file = outputs / "losses.png"
    outputs_file.write_bytes(b"picture")
    tracked.mlflow.artifact(outputs_file)
    run_file = tracked.mlflow.folder / "gallery/step-1.jpg"
    run_file.parent.mkdir()
    run_file.write_bytes(b"picture")
    tracked.mlflow.artifact(run_file)
    tracked.mlflow.close("done")
    run = tracked.stored()
    assert read_points(outputs) == expected_points(range(1, 6))
    assert run.data.params == {"seed": "17", "loss.weights.giou": "2", "data.note": "a=b"}
    assert (run.info.status, run.info.run_name, run.data.tags["state"]) == ("FINISHED", "run", "done")
    artifacts = tracked.mlflow.uploader.client.list_artifacts(run.info.run_id)
    assert [file.path for file in artifacts] == ["gallery", "losses.png", "train.log"]
    assert (outputs / "mlflow-artifacts" / run.info.run_id / "artifacts/gallery/step-1.jpg").is_file()
    assert len(list((outputs / "mlflow-artifacts").rglob("losses.png"))) == 1


def test_a_killed_run_resumes_the_same_mlflow_run_and_no_point_is_duplicated(outputs):
    killed = begin(outputs, flush_values=12)
    for step in range(1, 7):
        killed.log(step)
    assert becomes_true(lambda: read_points(outputs) == expected_points(range(1, 7)))
    tracked = begin(outputs, step=3)
    for step in range(4, 9):
        tracked.log(step)
    tracked.mlflow.close("done")
    assert read_points(outputs) == expected_points(range(1, 9))
    assert tracked.stored().info.run_id == killed.mlflow.uploader.run_id


def test_points_that_only_metrics_jsonl_has_are_sent_at_resume(outputs):
    killed = begin(outputs)
    for step in range(1, 4):
        killed.log(step)
    assert read_points(outputs) == []
    begin(outputs, step=3)
    assert read_points(outputs) == expected_points(range(1, 4))


def test_an_evaluation_is_sent_at_resume_though_mlflow_has_other_points_of_its_step(outputs):
    killed = begin(outputs, flush_values=2)
    killed.log(1)
    assert becomes_true(lambda: read_points(outputs) == expected_points([1]))
    killed.jsonl.log(1, {"eval/ap": 0.5})
    begin(outputs, step=1)
    assert read_points(outputs) == sorted([*expected_points([1]), ("run", "eval/ap", 1, 0.5)])


def test_a_store_that_lacks_the_run_gets_a_new_one_with_every_point(outputs, tmp_path, empty_store):
    tracked = begin(outputs)
    tracked.log(1)
    tracked.mlflow.close("interrupted")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(outputs / "sweep", elsewhere / "sweep")
    shutil.copy(empty_store, elsewhere / "mlflow.db")
    tracked = begin(elsewhere, step=1)
    tracked.log(2)
    tracked.mlflow.close("done")
    assert read_points(elsewhere) == expected_points([1, 2])


def test_a_store_that_fails_stops_no_run_and_gets_every_point_when_it_works_again(outputs, caplog):
    (outputs / "mlflow.db.lock").mkdir()  # a folder where a file should be
    tracked = begin(outputs, flush_values=2, flush_seconds=0.1)
    tracked.log(1)
    tracked.mlflow.artifact(tracked.jsonl.path)
    assert becomes_true(lambda: tracked.mlflow.uploader.retry_delay > 0.2)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    (outputs / "mlflow.db.lock").rmdir()
    tracked.log(2)
    tracked.mlflow.close("failed")
    assert read_points(outputs) == expected_points([1, 2])
    assert tracked.stored().info.status == "FAILED"


def test_a_warning_at_the_end_says_what_could_not_be_sent(outputs, caplog):
    (outputs / "mlflow.db.lock").mkdir()
    tracked = begin(outputs)
    tracked.log(1)
    tracked.mlflow.close("done")
    assert "with 2 values" in caplog.text


def test_files_that_could_not_be_sent_are_sent_when_the_run_is_resumed(outputs):
    (outputs / "mlflow.db.lock").mkdir()
    tracked = begin(outputs)
    tracked.mlflow.artifact(tracked.jsonl.path)
    tracked.mlflow.close("preempted")
    (outputs / "mlflow.db.lock").rmdir()
    tracked = begin(outputs)
    assert not (tracked.mlflow.folder / "mlflow_unsent.json").exists()
    artifacts = tracked.mlflow.uploader.client.list_artifacts(tracked.mlflow.uploader.run_id)
    assert [file.path for file in artifacts] == ["metrics.jsonl"]
    tracked.mlflow.close("done")


def test_values_that_are_not_finite_are_only_in_metrics_jsonl(outputs):
    tracked = begin(outputs)
    tracked.log(1, spike=float("inf"), broken=float("nan"))
    tracked.mlflow.close("done")
    assert read_points(outputs) == expected_points([1])


def test_many_steps_are_sent_in_batches_that_the_store_accepts(outputs):
    tracked = begin(outputs, flush_values=10**6)
    for step in range(1, 5):
        for tracker in tracked:
            tracker.log(step, {f"m{number}": float(number) for number in range(600)})
    tracked.mlflow.close("done")
    assert len(read_points(outputs)) == 2400


def test_parameters_that_mlflow_would_refuse_are_truncated_and_renamed(outputs):
    many = {f"key{number}": number for number in range(250)}
    tracked = begin(outputs, config={"many": many, "long": "x" * 9000, "^head\\.": 1, "/a/": 2})
    parameters = tracked.stored().data.params
    assert len(parameters) == 253
    assert len(parameters["long"]) == 6000
    assert "9000 characters" in parameters["long"]


def test_a_server_that_does_not_answer_is_one_short_line_and_is_not_shown_as_the_place_to_look(outputs, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        began = time.monotonic()
        tracked = begin(outputs, uri=uri, artifacts=None)
        tracked.log(1)
    assert time.monotonic() - began < 10
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"MLflow ({uri}) does not answer: Connection refused. The run continues, and tries again."
    ]
    assert tracked.mlflow.command is None


def test_the_command_works_in_any_folder_and_the_page_is_that_of_the_runs_experiment(outputs):
    open_client(absolute_uri(f"sqlite:///{outputs}/mlflow.db")).create_experiment("another one")
    tracked = begin(outputs)
    command, page = tracked.mlflow.command.splitlines()
    quoted = f"{outputs}".replace("?", "%3F").replace("%20", "%2520")
    assert command == f"{sys.executable} -m mlflow ui --backend-store-uri 'sqlite:///{quoted}/mlflow.db'"
    assert str(outputs).startswith("/")
    experiment = tracked.stored().info.experiment_id
    assert page.startswith(f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?")
    address, view = page.split("/#/")[0], page.partition("viewStateShareKey=")[2]
    assert address == "http://127.0.0.1:5000"
    assert f"mlflow.sharedViewState.{view}" in tracked.mlflow.uploader.client.get_experiment(experiment).tags


def test_everything_lies_inside_outputs_whatever_its_name(tmp_path):
    outputs = tmp_path / "a?b=c%20d #1 数据 100%"
    run = begin(outputs)
    (outputs / "picture.png").write_bytes(b"x")
    run.mlflow.artifact(outputs / "picture.png")
    run.mlflow.close("done")
    assert [*tmp_path.iterdir()] == [outputs]
    names = {path.name for path in outputs.rglob("*") if path.is_file()}
    assert {"mlflow.db", "picture.png"} <= names
    assert len(list(outputs.rglob("picture.png"))) == 2


def test_a_slow_store_delays_no_step(outputs):
    tracked = begin(outputs, flush_values=2)
    with sqlite3.connect(outputs / "mlflow.db") as database:
        database.execute("begin exclusive")  # every writer waits
        for step in range(1, 11):
            tracked.log(step)
        assert tracked.mlflow.thread.num_handled < tracked.mlflow.thread.num_requested
        database.rollback()
    tracked.mlflow.close("done")
    assert read_points(outputs) == expected_points(range(1, 11))


def can_fork_within(context):
    """Whether a process can be forked while a thread is in `context`, which it leaves after half a second."""
    entered, left = threading.Event(), threading.Event()

    def stay_half_a_second():
        with context:
            entered.set()
            time.sleep(0.5)
            left.set()

    thread = threading.Thread(target=stay_half_a_second)
    thread.start()
    entered.wait()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    child.start()
    was_forked_within = not left.is_set()
    child.join()
    thread.join()
    return was_forked_within


def test_no_process_is_forked_within_a_call_of_the_store():
    assert not can_fork_within(no_fork("sqlite:///some.db"))


def test_forks_wait_neither_for_a_server_nor_for_another_process_that_locks_the_store(outputs):
    assert can_fork_within(no_fork("http://localhost:5000"))
    with FileLock(outputs / "mlflow.db.lock"):
        threading.Thread(
            target=open_client, args=(absolute_uri(f"sqlite:///{outputs}/mlflow.db"),), daemon=True
        ).start()
        time.sleep(0.1)
        began = time.monotonic()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        child.start()
        assert time.monotonic() - began < 1
        child.join()


def test_a_run_that_is_killed_while_it_sends_loses_and_duplicates_no_point(outputs):
    process = processes.Process(target=log_forever, args=(outputs,))
    process.start()
    assert becomes_true(lambda: count_points(outputs) > 100)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    last = read_rows(outputs / "sweep" / "run" / "metrics.jsonl")[-1][1]["step"]
    tracked = begin(outputs, step=last)
    tracked.log(last + 1)
    tracked.mlflow.close("done")
    assert read_points(outputs) == expected_points(range(1, last + 2))


def write_run(outputs, run, barrier):
    barrier.wait()
    tracked = begin(outputs, run=run)
    for step in range(1, 21):
        tracked.log(step)
    tracked.mlflow.close("done")


def test_four_processes_that_create_a_store_at_the_same_time_lose_nothing(tmp_path):
    runs = ["a", "b", "c", "d"]
    barrier = processes.Barrier(len(runs))
    writers = [processes.Process(target=write_run, args=(tmp_path, run, barrier)) for run in runs]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * len(runs)
    assert read_points(tmp_path) == sorted(point for run in runs for point in expected_points(range(1, 21), run))
