"""Sweeps on this machine, and the commands that look after a sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("experiment=smoke", "tracker=jsonl", "threads=1", "head=none", "loss=language", "steps=3")
SMALL += ("data.num_train=8", "data.num_validation=2", "sampler.num_samples=1", "eval_every=null", "save_every=null")


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )


def test_a_sweep_runs_two_at_a_time_and_the_same_command_again_runs_only_what_is_missing(tmp_path):
    launched = ("bbu_train", "-m", "hydra/launcher=local", "launchers.num_parallel=2", "sweep=s", *SMALL)
    done = program(tmp_path, *launched, "optimizer.groups.llm.lr=1e-3,1e30")
    assert done.returncode == 1, done.stderr
    assert "1 done, 1 failed" in done.stdout
    done = program(tmp_path, *launched, "optimizer.groups.llm.lr=1e-3,1e30,2e-3")
    assert done.stdout.count(" has ended") == 1
    assert "2 done, 1 failed" in done.stdout
    assert "Expected of 3 runs" in done.stdout

    done = program(tmp_path, "launchers", "status", "s")
    assert "not finite" in done.stdout
    assert "Traceback" in done.stdout
    assert [len(list(path.parent.glob("0*"))) for path in tmp_path.glob("outputs/s/ledger/*/cell.json")] == [1, 1, 1]
    (run, *_) = tmp_path.glob("outputs/s/*/environment.json")
    assert json.loads(run.read_text())["choices"]["tracker"] == "jsonl"


def test_a_sweep_that_nobody_started_is_refused_with_those_that_are_near(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BBU_OUTPUTS", str(tmp_path))
    (tmp_path / "rates/ledger").mkdir(parents=True)
    assert main(["status", "rate"]) == 2
    assert "Did you mean rates?" in capsys.readouterr().err
    assert main(["status", "rates"]) == 0
    assert main(["status", str(tmp_path / "rates")]) == 0
    with pytest.raises(SystemExit):
        main(["retry", "rates"])
