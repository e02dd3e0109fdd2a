"""Against a tracking server of MLflow's own: it hangs, dies, loses its answers, comes back."""

import http.client
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from omegaconf import OmegaConf
from tracked_runs import arguments, begin, comes_true, expected, log, log_without_end, points

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
        places = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", self.folder]
        address = ["--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2], "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *places, *address]
        with (self.folder / "server.log").open("w") as out:
            self.process = subprocess.Popen(command, start_new_session=True, stdout=out, stderr=out)
        assert comes_true(self.answers), (self.folder / "server.log").read_text()

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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def run(request):
    """A name of the test's own, for all of them write to one server."""
    return request.node.name.removeprefix("test_")[:40]


def on(uri, run, **changed):
    return {"uri": uri, "artifacts": None, "run": run, **changed}


def runs_named(server, run):
    client = open_client(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    return [found for found in runs if found.info.run_name == run]


def test_a_run_has_every_point_and_its_files_on_a_server(server, run, tmp_path):
    both = begin(tmp_path, **on(server.uri, run))
    log(both, 1)
    (tmp_path / "losses.png").write_bytes(b"picture")
    both[1].artifact(tmp_path / "losses.png")
    both[1].close("done")
    assert points(server.folder, run) == expected([1], run)
    (stored,) = runs_named(server, run)
    assert (stored.info.status, stored.data.params["loss.weights.giou"]) == ("FINISHED", "2")
    assert [file.path for file in open_client(server.uri).list_artifacts(stored.info.run_id)] == ["losses.png"]


def test_jobs_without_a_common_lock_find_one_parent(server, run):
    experiment, found = find_or_create_experiment(open_client(server.uri), run, None), []
    asking = [
        threading.Thread(
            target=lambda: found.append(find_or_create_parent(open_client(server.uri), experiment, "sweep"))
        )
        for _ in range(8)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    (parent,) = open_client(server.uri).search_runs([experiment])
    assert len(found) == 8
    assert find_or_create_parent(open_client(server.uri), experiment, "sweep") == parent.info.run_id


def test_a_server_that_hangs_slows_no_step_and_has_every_point_when_it_goes_on(server, run, tmp_path):
    both = begin(tmp_path, **on(server.uri, run, flush_values=2))
    server.signal(signal.SIGSTOP)
    began = time.monotonic()
    for step in range(1, 101):
        log(both, step)
    took = time.monotonic() - began
    answered = both[1].sender.answered
    server.signal(signal.SIGCONT)
    both[1].close("done")
    assert took < 1
    assert answered < both[1].sender.asked
    assert points(server.folder, run) == expected(range(1, 101), run)


def test_the_start_and_the_end_wait_for_a_server_that_hangs_no_longer_than_they_are_told(server, run, tmp_path, caplog):
    server.signal(signal.SIGSTOP)
    began = time.monotonic()
    both = begin(tmp_path, **on(server.uri, run, wait_seconds=0.5))
    log(both, 1)
    both[1].close("preempted")
    took = time.monotonic() - began
    server.signal(signal.SIGCONT)
    both[1].sender.join()
    assert took < 3
    assert "no answer within 0.5 seconds" in caplog.text
    both = begin(tmp_path, step=1, **on(server.uri, run))
    both[1].close("done")
    assert points(server.folder, run) == expected([1], run)
    assert [stored.info.status for stored in runs_named(server, run)] == ["FINISHED"]


def test_what_a_server_that_is_down_did_not_get_is_replayed_when_it_is_up(server, run, tmp_path, caplog, capsys):
    server.stop()
    both = begin(tmp_path, **on(server.uri, run))
    for step in range(1, 4):
        log(both, step)
    folder = tmp_path / "sweep" / run
    (folder / "losses.png").write_bytes(b"picture")
    both[1].artifact(folder / "losses.png")
    both[1].close("done")
    closed = time.time()
    assert [record.name for record in caplog.records if record.name.startswith("urllib3")] == []
    assert "with 6 values" in caplog.text
    assert f"python -m bbu_train.replay {folder}" in caplog.text
    tracker = {"_target_": "bbu_train.tracker.mlflow.Mlflow", **arguments(tmp_path, **on(server.uri, run))}
    config = {"sweep": "sweep", "run": run, "outputs": str(tmp_path), "tracker": {"mlflow": tracker}}
    OmegaConf.save(config, folder / "config.yaml")
    assert replay([str(tmp_path)]) == 1
    server.start()
    assert replay([str(tmp_path)]) == 0
    assert points(server.folder, run) == expected(range(1, 4), run)
    (stored,) = runs_named(server, run)
    assert (stored.info.status, stored.data.tags["state"]) == ("FINISHED", "done")
    assert stored.info.end_time <= 1000 * closed
    assert [file.path for file in open_client(server.uri).list_artifacts(stored.info.run_id)] == [
        "config.yaml",
        "losses.png",
    ]
    assert replay([str(tmp_path)]) == 0
    assert "lacks nothing" in capsys.readouterr().out


class Forgetful(ThreadingHTTPServer):
    """Hands requests on to `uri`, but of each kind of writing one the first answer is lost on its way back."""

    daemon_threads = True

    def __init__(self, uri):
        super().__init__(("127.0.0.1", 0), Forwarding)
        self.target = uri.removeprefix("http://")
        self.lost = set()
        self.uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Forwarding(BaseHTTPRequestHandler):
    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.server.target)
        connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if self.command == "POST" and "search" not in self.path and self.path not in self.server.lost:
            self.server.lost.add(self.path)
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = forward

    def log_message(self, *_):
        """Nothing: the tests' output is not the place."""


def test_a_server_whose_answers_are_lost_has_one_run_and_every_point_once(server, run, tmp_path):
    forgetful = Forgetful(server.uri)
    both = begin(tmp_path, **on(forgetful.uri, run, in_sweep=True, sweep=run + " sweep", flush_seconds=0.1))
    for step in range(1, 21):
        log(both, step)
    both[1].close("done")
    forgetful.shutdown()
    assert {path.rpartition("/")[2] for path in forgetful.lost} >= {"create", "log-batch", "update"}
    assert points(server.folder, run) == expected(range(1, 21), run)
    assert [stored.info.status for stored in runs_named(server, run)] == ["FINISHED"]
    assert len(runs_named(server, run + " sweep")) == 1


def test_a_run_that_is_killed_while_it_sends_to_a_server_loses_and_doubles_no_point(server, run, tmp_path):
    sending = multiprocessing.get_context("spawn").Process(
        target=log_without_end, args=(tmp_path,), kwargs=on(server.uri, run)
    )
    sending.start()
    assert comes_true(lambda: len(points(server.folder, run)) > 100)
    server.signal(signal.SIGSTOP)  # what is on its way arrives after the death of its sender
    time.sleep(0.2)
    sending.kill()
    sending.join()
    server.signal(signal.SIGCONT)
    last = read_rows(tmp_path / "sweep" / run / "metrics.jsonl")[-1][1]["step"]
    both = begin(tmp_path, step=last, **on(server.uri, run))
    log(both, last + 1)
    both[1].close("done")
    assert points(server.folder, run) == expected(range(1, last + 2), run)
