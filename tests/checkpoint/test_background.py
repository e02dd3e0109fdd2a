"""Checkpoints that are written in the background equal those that are written at once, whatever happens meanwhile."""

import os
import resource
import signal
import socket
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from pathlib import Path

import pytest
import torch
from forked import processes, run_ranks
from whole_runs import assert_equal_runs, rows

from bbu_train.average.none import NoAverage
from bbu_train.checkpoint import background, process, writer
from bbu_train.checkpoint.background import BackgroundCheckpoints
from bbu_train.checkpoint.committed import FILES
from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.checkpoint.process import WriterProcess
from bbu_train.checkpoint.snapshot import Packed
from bbu_train.checkpoint.writer import Request
from bbu_train.errors import InputError, Preempted
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.runtime import distributed, preemption
from bbu_train.training import recovery
from bbu_train.training.loader import prefetch
from bbu_train.training.progress import Progress, Saver


class Trained:
    """Two weights with the optimizer that updates them in place."""

    def __init__(self, num_rows=40, device="cpu"):
        torch.manual_seed(0)
        dtypes = {"a": torch.bfloat16, "b": torch.float32}
        values = {name: torch.randn(num_rows, 30, dtype=dtype) for name, dtype in dtypes.items()}
        self.weights = {name: torch.nn.Parameter(value.to(device)) for name, value in values.items()}
        self.optimizer = MixedAdamW([{"params": [*self.weights.values()]}], has_masters=True, lr=0.1)
        self.update()

    def update(self):
        for weight in self.weights.values():
            weight.grad = torch.randn_like(weight)
        self.optimizer.step()

    def contents(self):
        weights = {name: weight.detach() for name, weight in self.weights.items()} | {"empty": torch.empty(0, 3)}
        return weights, {"optimizer": self.optimizer.state_dict(), "metrics": {"loss": 0.5}, "evaluated_at": None}


def make_background(folder: Path) -> BackgroundCheckpoints:
    checkpoints = BackgroundCheckpoints(LocalCheckpoints(folder, 2, "eval/ap50", "max"), grace_seconds=None)
    checkpoints.prepare(*Trained().contents())
    return checkpoints


class ForkedWriter:
    """Takes the place of the process that `_start` returns: a forked one has imported torch already."""

    def __init__(self, connection, memory):
        self.process = processes.Process(target=serve_forked, args=(Inherited(connection), Inherited(memory)))
        self.process.start()
        self.pid = self.process.pid

    def wait(self):
        self.process.join()
        return self.process.exitcode


class Inherited:
    """A descriptor that a process of the fork server gets."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def __reduce__(self):
        return detach, (DupFd(self.descriptor),)


def detach(duplicate):
    return duplicate.detach()


def serve_forked(connection, memory):
    writer.serve(Connection(connection), memory)


@pytest.fixture
def in_background(monkeypatch):
    """Let small checkpoints be written in the background too."""
    monkeypatch.setattr(background, "MIN_BACKGROUND_BYTES", 0)
    monkeypatch.setattr(background, "SPARE_BYTES", 0)
    monkeypatch.setattr(process, "_start", ForkedWriter)


@pytest.fixture
def saving(in_background, tmp_path):
    """BackgroundCheckpoints in an empty folder, with a process that is ready."""
    saving = make_background(tmp_path / "checkpoints")
    saving._process.wait_until_ready()
    yield saving
    saving.close()


def process_id(saving: BackgroundCheckpoints) -> int:
    return saving._process.process.pid


def hidden(saving: BackgroundCheckpoints) -> list[str]:
    return [path.name for path in saving.checkpoints.folder.glob(".*")]


def test_what_is_saved_while_training_goes_on_equals_a_save_of_that_moment_bit_for_bit(saving, tmp_path):
    trained = Trained()
    expected = LocalCheckpoints(tmp_path / "at once", 2, "eval/ap50", "max").save(7, *trained.contents(), {"m": 1.0})
    os.kill(process_id(saving), signal.SIGSTOP)
    saving.save(7, *trained.contents(), {"m": 1.0})
    trained.update()
    assert saving.poll() is None
    assert saving.checkpoints.latest() is None, "the process that writes is stopped"
    os.kill(process_id(saving), signal.SIGCONT)
    saving.finish()
    assert saving.failure is None
    written = saving.checkpoints.latest()
    assert (written.step, written.metrics) == (7, {"m": 1.0})
    for name in FILES:
        assert (written.folder / name).read_bytes() == (expected / name).read_bytes()


def test_a_save_waits_for_the_one_before_and_says_so(saving, monkeypatch, caplog):
    monkeypatch.setattr(background, "LONG_SECONDS", 0.1)
    trained = Trained()
    os.kill(process_id(saving), signal.SIGSTOP)
    saving.save(1, *trained.contents(), {})
    threading.Timer(0.2, os.kill, (process_id(saving), signal.SIGCONT)).start()
    saving.save(2, *trained.contents(), {})
    assert saving.checkpoints.at(1).state()["metrics"] == {"loss": 0.5}
    assert "s to save step 2: the process that writes checkpoints had not finished the one before" in caplog.text
    saving.finish()
    assert saving.checkpoints.latest().step == 2


def test_a_state_that_has_grown_is_saved_whole(saving):
    grown = Trained(num_rows=50)
    saving.save(1, *grown.contents(), {})
    saving.finish()
    assert torch.equal(saving.checkpoints.latest().weights()["a"], grown.weights["a"])


def test_data_workers_may_be_forked_while_a_checkpoint_is_written(saving):
    os.kill(process_id(saving), signal.SIGSTOP)
    saving.save(1, *Trained().contents(), {})
    assert list(prefetch(abs, range(-3, 0), num_workers=1)) == [3, 2, 1]
    os.kill(process_id(saving), signal.SIGCONT)
    saving.finish()
    assert saving.checkpoints.latest().step == 1


@pytest.mark.parametrize("is_state_too_large", [False, True])
def test_a_full_disk_is_an_error_that_names_the_newest_checkpoint(saving, is_state_too_large):
    trained = Trained()
    saving.save(1, *trained.contents(), {})
    saving.finish()
    sizes = [(saving.checkpoints.latest().folder / name).stat().st_size for name in FILES]
    limit = max(sizes) - 1 if is_state_too_large else min(sizes) - 1  # the state is the larger file
    resource.prlimit(process_id(saving), resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    saving.save(2, *trained.contents(), {})
    saving.finish()
    resource.prlimit(process_id(saving), resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    failure, saving.failure = saving.failure, None
    assert isinstance(failure, InputError)
    assert "The checkpoint of step 2 could not be written" in str(failure)
    assert "The newest checkpoint is that of step 1." in str(failure)
    assert hidden(saving) == []
    assert saving.checkpoints.latest().state()["metrics"] == {"loss": 0.5}


def test_tensors_lie_in_segments_of_which_none_is_shared(monkeypatch):
    monkeypatch.setattr("bbu_train.checkpoint.snapshot.SEGMENT_BYTES", 10_000)
    sizes = [3_000, 6_000, 5_000, 30_000, 1, 0, 9_000]
    packed = Packed([torch.zeros(size, dtype=torch.uint8) for size in sizes])
    for start, end in zip(packed.starts, [*packed.starts[1:], packed.num_bytes], strict=True):
        assert start % 4096 == 0
        inside = [slot for slot in packed.slots if start <= slot[0] < end]
        assert all(offset + shape[0] <= end for offset, _, shape in inside)
    assert packed.starts == [0, 12_288, 20_480, 53_248]


def test_without_memory_for_a_copy_training_stops_to_save_and_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(background, "MIN_BACKGROUND_BYTES", 0)
    monkeypatch.setattr("bbu_train.runtime.host_memory.available_bytes", lambda *_: 2_500_000_000)
    saving, trained = make_background(tmp_path), Trained()
    for step in (1, 2):
        saving.save(step, *trained.contents(), {})
        assert saving.checkpoints.latest().step == step
    [message] = caplog.messages
    assert "to save step 1: a copy of 0.0 GB with 4.3 GB to spare would let it go on" in message
    assert "this job may use only 2.5 GB more of host memory" in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_next_update_waits_for_a_slow_copy(in_background, tmp_path, monkeypatch):
    trained, copy = Trained(device="cuda"), WriterProcess.copy
    checkpoints = LocalCheckpoints(tmp_path, 2, "eval/ap50", "max")
    average = NoAverage(torch.nn.ParameterDict(trained.weights), trained.optimizer)
    saver = Saver(checkpoints, trained.optimizer, average, is_periodic=True, grace_seconds=None)
    trained.update()
    expected = {name: weight.detach().cpu() for name, weight in trained.weights.items()}
    moments = [state["exp_avg"].cpu() for state in trained.optimizer.state.values()]

    def copy_slowly(self, packed):
        torch.cuda._sleep(10**9)  # cycles of this stream: half a second
        copy(self, packed)

    monkeypatch.setattr(WriterProcess, "copy", copy_slowly)
    saver.save(Progress(1, 0))
    trained.update()
    saver.finish()
    saver.close()
    saved = checkpoints.latest()
    assert all(torch.equal(saved.weights()[name], weight) for name, weight in expected.items())
    states = saved.state()["optimizer"]["state"].values()
    assert all(torch.equal(state["exp_avg"], moment) for state, moment in zip(states, moments, strict=True))


def test_saves_that_outlast_the_grace_of_a_job_are_reported_once(tmp_path, caplog):
    saving, trained = BackgroundCheckpoints(LocalCheckpoints(tmp_path, 2, "eval/ap50", "max"), 0.0), Trained()
    for step in (1, 2):
        saving.save(step, *trained.contents(), {})
    assert caplog.text.count("but cluster.grace_seconds=0") == 1


# Kills


def test_a_process_that_is_killed_while_it_writes_is_an_error_and_leaves_the_newest_loadable(saving):
    trained = Trained()
    saving.save(1, *trained.contents(), {})
    saving.finish()
    os.kill(process_id(saving), signal.SIGSTOP)
    saving.save(2, *trained.contents(), {})
    (saving.checkpoints.folder / ".writing-step-00000002").mkdir()  # it is killed while it writes
    os.kill(process_id(saving), signal.SIGKILL)
    while saving.poll() is None:
        time.sleep(0.01)
    assert isinstance(saving.failure, InputError)
    assert "ended (SIGKILL) before the checkpoint of step 2 was committed" in str(saving.failure)
    saving.save(3, *trained.contents(), {})
    assert saving.checkpoints.latest().step == 1, "nothing is saved after an error"
    assert saving.checkpoints.latest().state()["metrics"] == {"loss": 0.5}
    saving.checkpoints.save(3, *trained.contents(), {})
    assert hidden(saving) == []


def save_until_killed(folder, connection):
    background.MIN_BACKGROUND_BYTES = background.SPARE_BYTES = 0
    saving, trained = make_background(folder), Trained()
    saving.save(1, *trained.contents(), {})
    saving.finish()
    os.kill(process_id(saving), signal.SIGSTOP)
    saving.save(2, *trained.contents(), {})
    connection.send(process_id(saving))
    time.sleep(60)


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists() and "State:\tZ" not in Path(f"/proc/{process}/status").read_text()


def test_if_training_is_killed_the_process_ends_and_leaves_the_newest_loadable(tmp_path):
    connection, other_end = processes.Pipe()
    training = processes.Process(target=save_until_killed, args=(tmp_path, other_end))
    training.start()
    writer = connection.recv()
    training.kill()
    training.join()
    os.kill(writer, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while is_alive(writer):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    checkpoints = LocalCheckpoints(tmp_path, 2, "eval/ap50", "max")
    assert checkpoints.latest().step in (1, 2)
    assert checkpoints.latest().state()["metrics"] == {"loss": 0.5}
    checkpoints.save(3, *Trained().contents(), {})
    assert [path.name for path in tmp_path.glob(".*")] == []


class NeverDone(LocalCheckpoints):
    def save(self, step, *contents):
        self.folder.mkdir()
        time.sleep(60)


def test_if_training_replaces_its_process_the_process_that_writes_ends_at_once(in_background, tmp_path):
    packed = Packed(Trained().contents())
    writing = WriterProcess(packed)
    writing.wait_until_ready()
    writing.send(Request(NeverDone(tmp_path / "begun", 2, "eval/ap50", "max"), 1, packed.pickled, {}))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    began = time.monotonic()
    writing.connection.close()  # as exec does
    assert writing.process.wait() == 1
    assert time.monotonic() - began < 30, "it did not finish what it wrote"


# Runs


def slowly(send):
    """Let the process wait before it writes what it is sent."""

    def stopped(self, request):
        os.kill(self.process.pid, signal.SIGSTOP)
        send(self, request)
        threading.Timer(0.3, os.kill, (self.process.pid, signal.SIGCONT)).start()

    return stopped


def signal_after(train_step, nth):
    """Let a run be asked to end in its nth step."""
    calls = []

    def asked(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            preemption._received.append("SIGTERM")
        return train_step(*arguments)

    return asked


def test_a_preempted_run_waits_for_its_commit_and_goes_on_as_if_uninterrupted(
    run, uninterrupted, outputs, in_background, monkeypatch
):
    """The checkpoint of step 3 is written beside step 4 and a data worker; in step 4 the run is asked to end."""
    name, choice = "in-background", "num_workers=1"
    monkeypatch.setattr(WriterProcess, "send", slowly(WriterProcess.send))
    with monkeypatch.context() as patch, pytest.raises(Preempted) as ended:
        patch.setattr(recovery, "train_step", signal_after(recovery.train_step, 4))
        run(name, choice)
    preemption._received.clear()
    folder = outputs / "smoke" / name / "checkpoints"
    assert ended.value.step == 4
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000004"]
    assert_equal_runs(run(name, choice), uninterrupted)


def test_an_error_of_a_save_ends_the_run_before_its_next_step(run, outputs, tmp_path):
    (tmp_path / "file").touch()
    overrides = f"checkpoint.folder={tmp_path}/file/checkpoints", "save_every=1", "eval_every=null"
    with pytest.raises(InputError, match=r"The checkpoint of step 1 could not be written to .*There is no older"):
        run("unwritable", *overrides)
    assert [row["step"] for row in rows(outputs / "smoke" / "unwritable")] == [1]


def finish_a_failed_save(rank, port, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.start()
    trained = Trained()
    model = torch.nn.ParameterDict(trained.weights)
    checkpoints = LocalCheckpoints(folder, 2, "eval/ap50", "max")
    saver = Saver(checkpoints, trained.optimizer, NoAverage(model, trained.optimizer), False, None)
    saver.save(Progress(1, 0))
    assert saver.has_failed() == (rank == 0)
    with pytest.raises(InputError, match="The checkpoint of step 1 could not be written"):
        saver.finish()
    saver.close()
    distributed.finish()


def test_an_error_of_a_save_is_raised_on_all_ranks(tmp_path):
    (tmp_path / "file").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(finish_a_failed_save, port, tmp_path / "file" / "checkpoints")
