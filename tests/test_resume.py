"""Whole runs that are killed and resumed, and what must not change a run."""

import os
import signal
import time

import pytest
import torch
from forked import run_program, start_program
from whole_runs import CACHE, GALLERIES, assert_equal_runs, command, leave_out_plots, logged, rows, trained, weights

from bbu_train.compare.sweep import read_runs


def kill_after(arguments, folder, num_rows):
    """Start a run in a process of its own and kill it, without warning, once it has logged so many rows."""
    process = start_program(arguments, folder.with_suffix(".txt"))
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= num_rows):
        assert process.is_alive() and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("num_workers", "kills", "length"), [(0, [2, 6], ["steps=6"]), (2, [6], ["epochs=1", "eval_every=3"])]
)
def test_a_killed_and_resumed_run_equals_one_that_was_never_killed(outputs, uninterrupted, num_workers, kills, length):
    """Two rows are logged before the first checkpoint, and six after it. The 24 samples are an epoch of 6 steps."""
    folder = outputs / "smoke" / f"killed-{num_workers}"
    arguments = command(outputs, folder.name, f"num_workers={num_workers}", *length)
    for num_rows in kills:
        kill_after(arguments, folder, num_rows)
    run_program(arguments, folder.with_suffix(".txt"), before=leave_out_plots)
    assert_equal_runs(folder, uninterrupted)
    for name in GALLERIES:
        assert (folder / "gallery" / name).read_bytes() == (uninterrupted / "gallery" / name).read_bytes()


def test_a_killed_and_resumed_run_of_other_choices_equals_one_that_was_never_killed(outputs, run):
    """The resumed one begins with an empty cache."""
    curriculum = ["sampler=shortest_first", "sampler.share=0.5", "sampler.curriculum_epochs=2"]
    choices = [*CACHE, "augmentation=crops", "average=ema", "optimizer=muon", *curriculum]
    cached = run("cached", *choices)
    shares = logged(cached, "time/teacher_cache_hit_rate")
    assert 0 <= shares[0] < max(shares) <= 1
    folder = outputs / "smoke" / "killed-cached"
    arguments = command(outputs, folder.name, *choices, "num_workers=2")
    kill_after(arguments, folder, num_rows=6)
    run_program(arguments, folder.with_suffix(".txt"), before=leave_out_plots)
    assert_equal_runs(folder, cached)


def test_resume_by_folder_goes_on_and_a_finished_run_stays_as_it_is(uninterrupted, tmp_path):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    output = run_program(["bbu_train", f"resume={uninterrupted}"], tmp_path / "output")
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
    assert "loss/total" in output


def equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in some.items())


def test_evaluating_and_averaging_change_nothing_in_the_training_and_the_average_is_evaluated_and_saved(
    run, uninterrupted
):
    averaged = run("averaged", "average=ema", "eval_every=1", "gallery=0")
    assert not (averaged / "gallery").exists()
    assert equal(trained(averaged), weights(uninterrupted))
    assert not equal(weights(averaged), weights(uninterrupted))
    ours, others = rows(averaged), rows(uninterrupted)
    assert [row for row in ours if "loss/total" in row] == [row for row in others if "loss/total" in row]
    ours, others = ([row for row in its if "eval/loss/total" in row] for its in (ours, others))
    assert ours[0] == others[0]
    assert ours[-1]["step"] == others[-1]["step"]
    assert ours[-1]["eval/loss/total"] != others[-1]["eval/loss/total"]


def test_a_run_that_ends_early_is_finished_and_ends_at_the_same_step_after_a_kill(outputs, run):
    """The loss falls, so by mode=max the evaluations of steps 1 and 2 are no improvement on that of step 0."""
    rule = ["stopping=patience", "stopping.metric=eval/loss/total", "stopping.mode=max", "stopping.patience=2"]
    choices = [*rule, "eval_every=1", "save_every=1"]
    early = run("early", *choices)
    assert [row["step"] for row in rows(early) if "loss/total" in row] == [1, 2]
    finished, excluded = read_runs(early.parent)
    assert early.name in {run.name for run in finished} - {run.name for run in excluded}

    folder = outputs / "smoke" / "killed-early"
    arguments = command(outputs, folder.name, *choices)
    kill_after(arguments, folder, num_rows=3)
    run_program(arguments, folder.with_suffix(".txt"), before=leave_out_plots)
    assert_equal_runs(folder, early, step=2)
    logged_rows = (folder / "metrics.jsonl").read_bytes()
    output = run_program(["bbu_train", f"resume={folder}"], folder.with_suffix(".again"), before=leave_out_plots)
    assert "ended at step 2 of 6 already" in output
    assert (folder / "metrics.jsonl").read_bytes() == logged_rows
