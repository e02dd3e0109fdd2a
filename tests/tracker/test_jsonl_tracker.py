import json
import os
import time
from pathlib import Path

import pytest

from bbu_train.errors import InputError
from bbu_train.tracker.jsonl import Jsonl, read_rows


def open_tracker(folder, step=0):
    tracker = Jsonl(folder)
    tracker.open({}, step)
    return tracker


def rows_of(tracker):
    return [row for _, row in read_rows(tracker.path)]


def test_each_row_is_written_as_one_line_at_once(tmp_path):
    tracker = open_tracker(tmp_path / "run")
    tracker.log(1, {"loss/total": 2.5})
    tracker.log(1, {"eval/ap50/螺丝": 0.25})
    rows = rows_of(tracker)
    assert all(abs(row.pop("time/logged") - time.time()) < 60 for row in rows)
    assert rows == [{"step": 1, "loss/total": 2.5}, {"step": 1, "eval/ap50/螺丝": 0.25}]


def test_values_that_json_lacks_are_restored_by_float(tmp_path):
    tracker = open_tracker(tmp_path)
    tracker.log(1, {"nan": float("nan"), "up": float("inf"), "down": float("-inf")})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(tracker.path.read_text(), parse_constant=refuse)
    assert [str(float(row[name])) for name in ("nan", "up", "down")] == ["nan", "inf", "-inf"]


def test_resume_removes_rows_after_the_checkpoint_and_keeps_the_others_byte_for_byte(tmp_path):
    kept = b'{"step": 1,   "a": 1e-3}\n{"step":2}\n{"step": 2, "eval/ap": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(kept + b'{"step": 3}\n')
    tracker = open_tracker(tmp_path, step=2)
    assert tracker.path.read_bytes() == kept


def test_a_half_written_line_is_removed(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "loss/to')
    tracker = open_tracker(tmp_path, step=2)
    tracker.log(3, {"a": 1.0})
    assert [row["step"] for row in rows_of(tracker)] == [1, 3]


def test_a_run_that_starts_again_at_0_keeps_no_earlier_row(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0, "eval/ap": 0.0}\n{"step": 1}\n')
    assert open_tracker(tmp_path, step=0).path.read_bytes() == b""


def test_every_line_that_is_not_a_row_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\nhello\n[1]\n')
    with pytest.raises(InputError) as error:
        open_tracker(tmp_path, step=1)
    assert "metrics.jsonl:2" in str(error.value)
    assert "metrics.jsonl:3" in str(error.value)


def test_rows_are_on_disk_after_a_sync(tmp_path, monkeypatch):
    tracker, flushed = Jsonl(tmp_path), []
    tracker.open({}, 0)
    tracker.log(1, {"loss/total": 1.0})
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve()))
    tracker.sync()
    tracker.close("done")
    assert flushed == [tmp_path / "metrics.jsonl"]
