"""The MLflow tracker with a server that hangs, dies, loses its answers and comes back."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from forked import processes
from omegaconf import OmegaConf
from tracked_runs import becomes_true, begin, expected_points, log_forever, mlflow_arguments, read_points

from bbu_train.replay import replay
from bbu_train.tracker.jsonl import read_rows
from bbu_train.tracker.mlflow_store import find_or_create_experiment, open_client
from bbu_train.tracker.mlflow_sweep import find_or_create_parent


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Server:
    """`mlflow server` with one worker and an SQLite store in `folder`."""

    def __init__(self, folder):
        self.folder = folder
        self.uri = f"http://127.0.0.1:{free_port()}"

    def start(self):
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", self.folder]
        address = ["--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2], "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *stores, *address]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # it takes eight processes
        log = self.folder / "server.log"
        with log.open("w") as out:
            self.process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=out, stderr=out)
        if not becomes_true(self.answers, seconds=180):
            self.stop()
            pytest.fail(log.read_text())

    def answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200
        except OSError:
            return False

    def signal(self, number):
        os.killpg(self.process.pid, number)  # its workers too

    def stop(self):
        self.signal(signal.SIGKILL)
        self.process.wait()


class Proxy(ThreadingHTTPServer):
    """Forwards requests to `uri`. Until it is created, its address is that of a server that is down.

    With `loses_answers`, it loses the first answer to each kind of request that writes.
    """

    daemon_threads = True

    def __init__(self, uri, port=0, loses_answers=False):
        super().__init__(("127.0.0.1", port), Forwarding)
        self.target = uri.removeprefix("http://")
        self.loses_answers = loses_answers
        self.lost = set()
        self.uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Forwarding(BaseHTTPRequestHandler):
    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.server.target)
        connection.request(
            self.command, self.path, body, {"Content-Type": self.headers.get("Content-Type", "application/json")}
        )
        answer = connection.getresponse()
        content = answer.read()
        is_write = self.command == "POST" and "search" not in self.path
        if self.server.loses_answers and is_write and self.path not in self.server.lost:
            self.server.lost.add(self.path)
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = forward

    def log_message(self, *_):
        """Log nothing to the tests' output."""


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_store):
    server = Server(tmp_path_factory.mktemp("server"))
    shutil.copy(empty_store, server.folder / "mlflow.db")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def run(request):
    """A name for the test's run, because all tests write to one server."""
    return request.node.name.removeprefix("test_")[:40]


def server_arguments(uri, run, **changes):
    return {"uri": uri, "artifacts": None, "run": run, **changes}


def runs_named(server, run):
    client = open_client(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    return [stored for stored in runs if stored.info.run_name == run]


def test_a_run_has_every_point_and_its_files_on_a_server(server, run, tmp_path):
    tracked = begin(tmp_path, **server_arguments(server.uri, run))
    tracked.log(1)
    (tmp_path / "losses.png").write_bytes(b"picture")
    tracked.mlflow.artifact(tmp_path / "losses.png")
    tracked.mlflow.close("done")
    assert read_points(server.folder, run) == expected_points([1], run)
    (stored,) = runs_named(server, run)
    assert (stored.info.status, stored.data.params["loss.weights.giou"]) == ("FINISHED", "2")
    assert [file.path for file in open_client(server.uri).list_artifacts(stored.info.run_id)] == ["losses.png"]


def test_jobs_without_a_common_lock_get_one_parent(server, run):
    experiment, results = find_or_create_experiment(open_client(server.uri), run, None), []
    threads = [
        threading.Thread(
            target=lambda: results.append(find_or_create_parent(open_client(server.uri), experiment, "sweep"))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (parent,) = open_client(server.uri).search_runs([experiment])
    assert len(results) == 8
    assert find_or_create_parent(open_client(server.uri), experiment, "sweep") == parent.info.run_id


def test_a_hanging_server_delays_no_step_and_gets_every_point_when_it_continues(server, run, tmp_path):
    tracked = begin(tmp_path, **server_arguments(server.uri, run, flush_values=2))
    server.signal(signal.SIGSTOP)
    began = time.monotonic()
    for step in range(1, 101):
        tracked.log(step)
    took = time.monotonic() - began
    num_handled = tracked.mlflow.thread.num_handled
    server.signal(signal.SIGCONT)
    tracked.mlflow.close("done")
    assert took < 1
    assert num_handled < tracked.mlflow.thread.num_requested
    assert read_points(server.folder, run) == expected_points(range(1, 101), run)


def test_the_start_and_the_end_wait_for_a_hanging_server_no_longer_than_wait_seconds(server, run, tmp_path, caplog):
    server.signal(signal.SIGSTOP)
    began = time.monotonic()
    tracked = begin(tmp_path, **server_arguments(server.uri, run, wait_seconds=0.5))
    tracked.log(1)
    tracked.mlflow.close("preempted")
    took = time.monotonic() - began
    server.signal(signal.SIGCONT)
    tracked.mlflow.thread.join()
    assert took < 3
    assert "no answer within 0.5 seconds" in caplog.text
    tracked = begin(tmp_path, step=1, **server_arguments(server.uri, run))
    tracked.mlflow.close("done")
    assert read_points(server.folder, run) == expected_points([1], run)
    assert [stored.info.status for stored in runs_named(server, run)] == ["FINISHED"]


def test_points_that_a_server_did_not_get_while_down_are_replayed_when_it_is_up(server, run, tmp_path, caplog, capsys):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    tracked = begin(tmp_path, **server_arguments(uri, run))
    for step in range(1, 4):
        tracked.log(step)
    folder = tmp_path / "sweep" / run
    (folder / "losses.png").write_bytes(b"picture")
    tracked.mlflow.artifact(folder / "losses.png")
    tracked.mlflow.close("done")
    closed = time.time()
    assert [record.name for record in caplog.records if record.name.startswith("urllib3")] == []
    assert "with 6 values" in caplog.text
    assert f"python -m bbu_train.replay {folder}" in caplog.text
    tracker = {
        "_target_": "bbu_train.tracker.mlflow.Mlflow",
        **mlflow_arguments(tmp_path, **server_arguments(uri, run)),
    }
    config = {"sweep": "sweep", "run": run, "outputs": str(tmp_path), "folder": str(folder)}
    config["tracker"] = {"mlflow": tracker}
    OmegaConf.save(config, folder / "config.yaml")
    assert replay([str(tmp_path)]) == 1
    proxy = Proxy(server.uri, port)
    assert replay([str(tmp_path)]) == 0
    assert read_points(server.folder, run) == expected_points(range(1, 4), run)
    (stored,) = runs_named(server, run)
    assert (stored.info.status, stored.data.tags["state"]) == ("FINISHED", "done")
    assert stored.info.end_time <= 1000 * closed
    assert [file.path for file in open_client(server.uri).list_artifacts(stored.info.run_id)] == [
        "config.yaml",
        "losses.png",
    ]
    assert replay([str(tmp_path)]) == 0
    assert "lacks nothing" in capsys.readouterr().out
    proxy.shutdown()


def test_a_server_whose_answers_are_lost_has_one_run_and_every_point_once(server, run, tmp_path):
    proxy = Proxy(server.uri, loses_answers=True)
    tracked = begin(
        tmp_path, **server_arguments(proxy.uri, run, in_sweep=True, sweep=run + " sweep", flush_seconds=0.1)
    )
    for step in range(1, 21):
        tracked.log(step)
    tracked.mlflow.close("done")
    proxy.shutdown()
    assert {path.rpartition("/")[2] for path in proxy.lost} >= {"create", "log-batch", "update"}
    assert read_points(server.folder, run) == expected_points(range(1, 21), run)
    assert [stored.info.status for stored in runs_named(server, run)] == ["FINISHED"]
    assert len(runs_named(server, run + " sweep")) == 1


def test_a_run_that_is_killed_while_it_sends_to_a_server_loses_and_duplicates_no_point(server, run, tmp_path):
    sending = processes.Process(target=log_forever, args=(tmp_path,), kwargs=server_arguments(server.uri, run))
    sending.start()
    assert becomes_true(lambda: len(read_points(server.folder, run)) > 100)
    server.signal(signal.SIGSTOP)  # what was sent already arrives after the sender's death
    time.sleep(0.2)
    sending.kill()
    sending.join()
    server.signal(signal.SIGCONT)
    last = read_rows(tmp_path / "sweep" / run / "metrics.jsonl")[-1][1]["step"]
    tracked = begin(tmp_path, step=last, **server_arguments(server.uri, run))
    tracked.log(last + 1)
    tracked.mlflow.close("done")
    assert read_points(server.folder, run) == expected_points(range(1, last + 2), run)
