import json
import math

import pytest
import sweeps
from sweeps import GIOU, RATE, add_run

from bbu_train.compare.command import training_command
from bbu_train.compare.comparison import compare
from bbu_train.errors import InputError
from bbu_train.runs import folder as run_folder


def compare_runs(outputs, metric="eval/ap50", mode="max", at="last"):
    return compare(outputs, sweeps.NAME, metric, mode, at)


def reasons(comparison):
    """Why each run is not compared, by the name of the run."""
    return dict(comparison.excluded.rows)


def test_runs_that_differ_only_in_their_seed_are_one_cell_with_mean_and_standard_deviation(grid_comparison):
    assert len(grid_comparison.ranking) == 4
    best = grid_comparison.ranking[0]
    assert best.settings == {GIOU: 5, RATE: 1e-5}
    values = [run.value for run in best.runs]
    assert len(values) == 3
    assert best.mean == pytest.approx(sum(values) / 3)
    assert best.std == pytest.approx(math.sqrt(sum((value - best.mean) ** 2 for value in values) / 2))


def test_failed_and_unfinished_runs_are_listed_with_the_reason_and_counted_in_their_cell(grid_comparison):
    assert sorted(reasons(grid_comparison).values()) == [
        "stopped at step 43 of 120: bbu_train.errors.InputError: the loss is not finite",
        "unfinished, at step 70 of 120",
    ]
    assert sorted(candidate.run_count for candidate in grid_comparison.ranking) == ["2/3", "2/3", "3", "3"]


def test_in_mode_min_the_cell_with_the_smallest_mean_comes_first(outputs):
    for weight, ap50 in ((1, 0.4), (2, 0.5), (3, 0.3)):
        add_run(outputs, [f"{GIOU}={weight}"], ap50)
    means = [candidate.mean for candidate in compare_runs(outputs, "eval/loss/total", "min").ranking]
    assert len(means) == 3
    assert means == sorted(means)


def test_other_data_is_another_candidate_and_the_same_data_elsewhere_is_not(outputs):
    for data, root, seed in (("1a", "/a", 1), ("1a", "/copy", 2), ("2b", "/b", 1), ("3c", "/b", 1)):
        add_run(outputs, ["data=jsonl", f"data.root={root}", f"about.data={data}", f"seed={seed}"], 0.1 + seed / 10)
    ranking = compare_runs(outputs).ranking
    found = sorted((candidate.settings["data.root"], len(candidate.runs)) for candidate in ranking)
    assert found == [("/a", 2), ("/b (2b)", 1), ("/b (3c)", 1)]
    command = next(candidate for candidate in ranking if len(candidate.runs) == 2)
    assert any(f"data.root={root}" in training_command(command)[0] for root in ("/a", "/copy"))


def test_other_weights_to_begin_with_are_another_candidate_named_by_their_folder(outputs):
    for weights, init, seed in (("1a", "/a", 1), ("1a", "/copy", 2), ("2b", "/b", 1)):
        add_run(outputs, [f"init={init}", f"about.init={weights}", f"seed={seed}"], 0.1 + seed / 10)
    ranking = compare_runs(outputs).ranking
    assert sorted((candidate.settings["init"], len(candidate.runs)) for candidate in ranking) == [("/a", 2), ("/b", 1)]
    best = next(candidate for candidate in ranking if len(candidate.runs) == 2)
    assert any(f"init={init}" in training_command(best)[0] for init in ("/a", "/copy"))


def test_data_that_a_choice_of_its_group_determines_is_no_setting_of_its_own(outputs):
    for words in (["data=synthetic"], ["data=jsonl", "data.root=/a", "about.data=1a"]):
        folder = add_run(outputs, words, 0.4)
        sweeps.record(folder, (), {"data": words[0].partition("=")[2]})
    assert sorted(list(candidate.settings.items()) for candidate in compare_runs(outputs).ranking) == [
        [("data", "jsonl")],
        [("data", "synthetic")],
    ]


def test_the_error_about_an_unknown_metric_names_similar_ones(outputs):
    add_run(outputs, [], 0.4)
    with pytest.raises(InputError, match="Did you mean eval/ap50.*There are: .*loss/total"):
        compare_runs(outputs, "eval/ap5")


def test_the_error_about_an_unknown_sweep_names_a_similar_one(grid_outputs):
    with pytest.raises(InputError, match=f"Did you mean sweep={sweeps.NAME}"):
        compare(grid_outputs, "synthetics", "eval/ap50", "max", "last")


def test_damaged_folders_are_named_and_the_other_runs_compared(outputs):
    folders = [add_run(outputs, [f"{GIOU}={weight}"], 0.4) for weight in range(1, 7)]
    (folders[0] / "config.yaml").write_text("seed: [1\n")
    (folders[1] / "metrics.jsonl").write_text('{"step": 1, "loss/total": \n')
    (folders[2] / "environment.json").write_text("[]")
    (folders[3] / "config.yaml").write_bytes(b"seed: \xff\n")
    sweeps.write_rows(folders[4], [{"step": 120, "eval/ap50": None}])
    comparison = compare_runs(outputs)
    places = ["config.yaml", "metrics.jsonl:1", "environment.json", "", "eval/ap50 at step 120 is None"]
    for folder, place in zip(folders, places, strict=False):
        reason = reasons(comparison)[folder.name]
        assert reason.startswith("damaged: ")
        assert place in reason
    assert len(comparison.scored) == 1


def test_if_no_run_can_be_compared_the_error_lists_every_reason(outputs):
    add_run(outputs, [], 0.4, last_step=70)
    with pytest.raises(InputError, match="unfinished, at step 70 of 120"):
        compare_runs(outputs)


def test_a_run_without_its_last_evaluation_has_not_ended(outputs):
    add_run(outputs, [], 0.4)
    folder = add_run(outputs, ["seed=1"], 0.4)
    sweeps.write_rows(folder, sweeps.curve(0.4, 1, 120)[:-1])
    assert reasons(compare_runs(outputs)) == {folder.name: "unfinished, before the evaluation of its last step, 120"}


def test_a_run_that_was_resumed_after_a_failure_is_not_called_failed(outputs):
    add_run(outputs, [], 0.4)
    folder = add_run(outputs, ["seed=1"], 0.4, last_step=70)
    sweeps.fail(folder, 50, "ValueError: no")
    with (folder / "train.log").open("a") as log:
        log.write(f"2025-01-31 13:00:00 INFO bbu_train.train: run {folder}\n    {run_folder.RESUMED} 50 to 120\n")
    assert reasons(compare_runs(outputs)) == {folder.name: "unfinished, at step 70 of 120"}


def test_the_status_in_the_ledger_is_reported_for_unfinished_runs(outputs):
    add_run(outputs, [], 0.4)
    unfinished = add_run(outputs, ["seed=1"], 0.4, last_step=70).name
    states = {unfinished: {"state": "preempted"}, "refused": {"state": "failed", "reason": "no\nmemory"}, "waits": None}
    for name, state in states.items():
        attempt = outputs / sweeps.NAME / "ledger" / name / "0001"
        attempt.mkdir(parents=True)
        (attempt.parent / "cell.json").write_text("{}")
        if state:
            (attempt / "state.json").write_text(json.dumps(state))
    assert reasons(compare_runs(outputs)) == {
        unfinished: "unfinished, at step 70 of 120; ledger: preempted",
        "refused": "not begun, failed: no memory",
        "waits": "not begun, queued",
    }


def test_a_run_that_diverged_or_lacks_the_metric_is_excluded_from_the_mean(outputs):
    add_run(outputs, [], 0.4)
    diverged, without_metric = add_run(outputs, ["seed=1"], 0.4), add_run(outputs, ["seed=2"], 0.4)
    rows = sweeps.curve(0.4, 1, 120)
    sweeps.write_rows(diverged, [*rows[:-1], rows[-1] | {"eval/ap50": "NaN"}])
    sweeps.write_rows(without_metric, [{"step": 120, "loss/total": 1.0, "eval/loss/total": 1.0}])
    comparison = compare_runs(outputs)
    assert reasons(comparison) == {
        diverged.name: "eval/ap50 is nan at step 120",
        without_metric.name: "has no eval/ap50",
    }
    assert comparison.ranking[0].run_count == "1/3"


def test_the_best_value_over_steps_is_reported_with_its_step(outputs):
    folder = add_run(outputs, [], 0.4)
    points = (60, 0.5), (90, 0.6), (120, 0.4)
    sweeps.write_rows(folder, [{"step": step, "eval/ap50": value} for step, value in points])
    (best,) = compare_runs(outputs, at="best").scored
    assert (best.value, best.step) == (0.6, 90)
    (last,) = compare_runs(outputs).scored
    assert (last.value, last.step) == (0.4, 120)


def test_equal_cells_share_a_rank(outputs):
    for weight, ap50 in ((1, 0.3), (2, 0.4), (3, 0.4)):
        folder = add_run(outputs, [f"{GIOU}={weight}"], ap50)
        sweeps.write_rows(folder, [{"step": 120, "eval/ap50": ap50}])
    comparison = compare_runs(outputs)
    assert [candidate.rank for candidate in comparison.ranking] == [1, 1, 3]
    assert [row[0] for row in comparison.leaderboard.rows] == ["1=", "1=", "3"]
    assert "2 candidates share the first place" in " ".join(comparison.summary)


def test_a_repeated_run_is_not_a_second_seed(outputs):
    folder = add_run(outputs, [], 0.4)
    earlier = folder.rename(folder.with_name("earlier"))
    add_run(outputs, [], 0.5)
    comparison = compare_runs(outputs)
    assert "the same config and seed" in reasons(comparison)[earlier.name]
    assert [candidate.run_count for candidate in comparison.ranking] == ["1"]


def test_keys_that_only_refer_to_another_key_are_left_out(outputs):
    for steps in (120, 100):  # schedule.num_steps is ${steps}
        add_run(outputs, [f"steps={steps}"], 0.4)
    assert list(compare_runs(outputs).ranking[0].settings) == ["steps"]


def test_a_sweep_of_epochs_is_compared_by_them_and_trained_again_with_them(outputs):
    """Runs of different epochs have different steps, which only follow from them."""
    for epochs, steps in ((1, 60), (2, 120)):
        folder = add_run(outputs, [f"epochs={epochs}", f"steps={steps}"], 0.4 + epochs / 100, last_step=steps)
        sweeps.record(folder, command=["bbu_train", f"epochs={epochs}", "eval_every=20"])
    comparison = compare_runs(outputs)
    assert [list(candidate.settings.items()) for candidate in comparison.ranking] == [[("epochs", 2)], [("epochs", 1)]]
    command, removed = training_command(comparison.ranking[0])
    assert (command, removed) == ("python -m bbu_train epochs=2 seed=17", [])


def test_a_config_group_replaces_the_keys_that_its_choice_determines(outputs):
    for choice, weight in (("packed", 1), ("standard", 1), ("packed", 2)):
        folder = add_run(outputs, [f"collator={choice}", f"{GIOU}={weight}"], 0.4 + weight / 100)
        sweeps.record(folder, choices={"collator": choice, "tracker": "mlflow"})
    assert compare_runs(outputs).ranking[0].settings == {"collator": "packed", GIOU: 2}


def test_a_sweep_without_differing_keys_has_no_effects(outputs):
    for seed in (1, 2):
        add_run(outputs, [f"seed={seed}"], 0.4)
    comparison = compare_runs(outputs)
    assert comparison.effects is None
    assert [candidate.run_count for candidate in comparison.ranking] == ["2"]


def test_different_versions_of_the_code_are_reported(outputs):
    for seed in (1, 2):
        folder = add_run(outputs, [f"seed={seed}"], 0.4)
        environment = json.loads((folder / "environment.json").read_text()) | {"git_commit": f"commit{seed}"}
        (folder / "environment.json").write_text(json.dumps(environment))
    assert "2 versions of the code: commit1, commit2" in " ".join(compare_runs(outputs).summary)
