"""Several trackers as one."""

from bbu_train.tracker.trackers import Trackers


class Recorder:
    def __init__(self):
        self.calls = []

    def open(self, config, step):
        self.calls.append(("open", config, step))

    def log(self, step, metrics):
        self.calls.append(("log", step, metrics))

    def sync(self):
        self.calls.append(("sync",))

    def artifact(self, path):
        self.calls.append(("artifact", path))

    def close(self, state):
        self.calls.append(("close", state))


def test_each_tracker_gets_every_call_in_order(tmp_path):
    recorders = {"jsonl": Recorder(), "other": Recorder()}
    trackers = Trackers(recorders)
    trackers.open({"seed": 1}, 3)
    trackers.log(4, {"loss/total": 1.0})
    trackers.sync()
    trackers.publish([tmp_path / "a.png", tmp_path / "b.png"])
    trackers.close("done")
    expected = [("open", {"seed": 1}, 3), ("log", 4, {"loss/total": 1.0}), ("sync",)]
    expected += [("artifact", tmp_path / "a.png"), ("artifact", tmp_path / "b.png"), ("close", "done")]
    assert [recorder.calls for recorder in recorders.values()] == [expected, expected]
    assert trackers.mlflow_command is None
