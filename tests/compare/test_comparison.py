import json
import math

import pytest
import sweeps
from sweeps import GIOU, RATE, add_run

from bbu_train.compare.comparison import compare
from bbu_train.errors import InputError


def compared(outputs, metric="eval/ap50", mode="max", at="last"):
    return compare(outputs, "made", metric, mode, at)


def reasons(found):
    return dict(found.excluded.rows)


def test_runs_that_differ_in_their_seed_only_are_one_cell_with_mean_and_spread(found):
    assert len(found.ranking) == 9
    best = found.ranking[0]
    assert best.settings == {GIOU: 5, RATE: 1e-5}
    values = [scored.value for scored in best.runs]
    assert len(values) == 3
    assert best.mean == pytest.approx(sum(values) / 3)
    assert best.spread == pytest.approx(math.sqrt(sum((value - best.mean) ** 2 for value in values) / 2))


def test_failed_and_unfinished_runs_are_listed_with_the_reason_and_counted_in_their_cell(found):
    assert sorted(reasons(found).values()) == [
        "stopped at step 43 of 120: bbu_train.errors.InputError: the loss is not finite",
        "unfinished, at step 70 of 120",
    ]
    assert sorted(cell.count for cell in found.ranking) == ["2/3", "2/3"] + 7 * ["3"]


def test_a_metric_that_should_be_small_is_ranked_the_other_way(made):
    means = [cell.mean for cell in compared(made, "eval/loss/total", "min").ranking]
    assert means == sorted(means)


def test_an_unknown_metric_names_the_nearest_that_exist(made):
    with pytest.raises(InputError, match="Did you mean eval/ap50.*There are: .*loss/total"):
        compared(made, "eval/ap5")


def test_an_unknown_sweep_names_the_nearest_that_exists(made):
    with pytest.raises(InputError, match="Did you mean sweep=made"):
        compare(made, "mode", "eval/ap50", "max", "last")


def test_damaged_folders_are_named_and_do_not_stop_the_rest(outputs):
    folders = [add_run(outputs, [f"{GIOU}={weight}"], 0.4) for weight in range(1, 7)]
    (folders[0] / "config.yaml").write_text("seed: [1\n")
    (folders[1] / "metrics.jsonl").write_text('{"step": 1, "loss/total": \n')
    (folders[2] / "environment.json").write_text("[]")
    (folders[3] / "config.yaml").write_bytes(b"seed: \xff\n")
    sweeps.write_rows(folders[4], [{"step": 120, "eval/ap50": None}])
    found = compared(outputs)
    said = [reasons(found)[folder.name] for folder in folders[:5]]
    assert all(reason.startswith("damaged: ") for reason in said)
    for reason, place in zip(
        said, ["config.yaml", "metrics.jsonl:1", "environment.json", "", "eval/ap50 at step 120 is None"], strict=True
    ):
        assert place in reason
    assert len(found.scored) == 1


def test_where_nothing_can_be_compared_every_reason_is_said(outputs):
    add_run(outputs, [], 0.4, last_step=70)
    with pytest.raises(InputError, match="unfinished, at step 70 of 120"):
        compared(outputs)


def test_a_run_without_its_last_evaluation_has_not_ended(outputs):
    add_run(outputs, [], 0.4)
    folder = add_run(outputs, ["seed=1"], 0.4)
    sweeps.write_rows(folder, sweeps.curve(0.4, 1, 120)[:-1])
    assert reasons(compared(outputs)) == {folder.name: "unfinished, before the evaluation of its last step, 120"}


def test_a_run_that_was_resumed_after_a_failure_is_not_called_failed(outputs):
    add_run(outputs, [], 0.4)
    folder = add_run(outputs, ["seed=1"], 0.4, last_step=70)
    sweeps.fail(folder, 50, "ValueError: no")
    with (folder / "train.log").open("a") as log:
        log.write(f"2025-01-31 13:00:00 INFO bbu_train.train: {folder}: from step 50 to 120\n")
    assert reasons(compared(outputs)) == {folder.name: "unfinished, at step 70 of 120"}


def test_what_the_ledger_knows_of_runs_that_have_not_ended_is_said(outputs):
    add_run(outputs, [], 0.4)
    begun = add_run(outputs, ["seed=1"], 0.4, last_step=70).name
    states = {begun: {"state": "preempted"}, "refused": {"state": "failed", "reason": "no\nmemory"}, "waits": None}
    for name, state in states.items():
        attempt = outputs / "made/ledger" / name / "0001"
        attempt.mkdir(parents=True)
        (attempt.parent / "cell.json").write_text("{}")
        if state:
            (attempt / "state.json").write_text(json.dumps(state))
    assert reasons(compared(outputs)) == {
        begun: "unfinished, at step 70 of 120; ledger: preempted",
        "refused": "not begun, failed: no memory",
        "waits": "not begun, queued",
    }


def test_a_run_that_diverged_or_lacks_the_metric_is_apart_and_not_in_the_mean(outputs):
    add_run(outputs, [], 0.4)
    diverged, without = add_run(outputs, ["seed=1"], 0.4), add_run(outputs, ["seed=2"], 0.4)
    rows = sweeps.curve(0.4, 1, 120)
    sweeps.write_rows(diverged, [*rows[:-1], rows[-1] | {"eval/ap50": "NaN"}])
    sweeps.write_rows(without, [{"step": 120, "loss/total": 1.0, "eval/loss/total": 1.0}])
    found = compared(outputs)
    assert reasons(found) == {diverged.name: "eval/ap50 is nan at step 120", without.name: "has no eval/ap50"}
    assert found.ranking[0].count == "1/3"


def test_the_best_over_steps_comes_with_its_step(outputs):
    folder = add_run(outputs, [], 0.4)
    sweeps.write_rows(
        folder, [{"step": step, "eval/ap50": value} for step, value in ((60, 0.5), (90, 0.6), (120, 0.4))]
    )
    (best,) = compared(outputs, at="best").scored
    assert (best.value, best.step) == (0.6, 90)
    (last,) = compared(outputs).scored
    assert (last.value, last.step) == (0.4, 120)


def test_equal_cells_share_a_rank(outputs):
    for weight, ap50 in ((1, 0.3), (2, 0.4), (3, 0.4)):
        folder = add_run(outputs, [f"{GIOU}={weight}"], ap50)
        sweeps.write_rows(folder, [{"step": 120, "eval/ap50": ap50}])
    found = compared(outputs)
    assert [cell.rank for cell in found.ranking] == [1, 1, 3]
    assert [row[0] for row in found.leaderboard.rows] == ["1=", "1=", "3"]
    assert "2 cells share the first place" in " ".join(found.summary)


def test_the_same_run_again_is_no_second_seed(outputs):
    folder = add_run(outputs, [], 0.4)
    twin = folder.rename(folder.with_name("earlier"))
    add_run(outputs, [], 0.5)
    found = compared(outputs)
    assert "the same config and seed" in reasons(found)[twin.name]
    assert [cell.count for cell in found.ranking] == ["1"]


def test_keys_that_only_follow_another_are_left_out(outputs):
    for steps in (120, 100):  # schedule.num_steps is ${steps}
        add_run(outputs, [f"steps={steps}"], 0.4)
    assert list(compared(outputs).ranking[0].settings) == ["steps"]


def test_a_config_group_stands_for_the_keys_that_its_choice_decides(outputs):
    for choice, weight in (("packed", 1), ("standard", 1), ("packed", 2)):
        folder = add_run(outputs, [f"collator={choice}", f"{GIOU}={weight}"], 0.4 + weight / 100)
        sweeps.record(folder, choices={"collator": choice, "tracker": "mlflow"})
    assert compared(outputs).ranking[0].settings == {"collator": "packed", GIOU: 2}


def test_a_sweep_without_differing_keys_has_no_effects(outputs):
    for seed in (1, 2):
        add_run(outputs, [f"seed={seed}"], 0.4)
    found = compared(outputs)
    assert found.effects is None
    assert [cell.count for cell in found.ranking] == ["2"]


def test_different_versions_of_the_code_are_said(outputs):
    for seed in (1, 2):
        folder = add_run(outputs, [f"seed={seed}"], 0.4)
        environment = json.loads((folder / "environment.json").read_text()) | {"git_commit": f"commit{seed}"}
        (folder / "environment.json").write_text(json.dumps(environment))
    assert "2 versions of the code: commit1, commit2" in " ".join(compared(outputs).summary)
