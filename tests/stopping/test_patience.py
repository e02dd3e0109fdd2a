"""Early stopping: when it ends a run, and that a resumed run ends at the same step."""

import math

import pytest

from bbu_train.errors import InputError
from bbu_train.stopping.patience import Patience


def patience(**values):
    given = {"metric": "eval/ap50", "mode": "max", "patience": 2, "min_delta": 0, "eval_every": 100}
    return Patience(**(given | values))


def num_evaluations_until_end(stopping, values):
    for count, value in enumerate(values, start=1):
        stopping.update({"eval/ap50": value})
        if stopping.reason:
            return count
    return None


@pytest.mark.parametrize(
    ("values", "choices", "expected"),
    [
        ([0.1, 0.2, 0.2, 0.1], {}, 4),
        ([0.1, 0.0, 0.2, 0.1, 0.3], {}, None),  # each improvement begins the count anew
        ([3, 2, 2, 1, 1, 1], {"mode": "min"}, 6),
        ([0.1, 0.15, 0.19, 0.5], {"min_delta": 0.1}, 3),  # better, but not by enough
        ([0.1, math.nan, math.nan], {}, 3),
        ([math.nan, math.nan, 0.5], {}, 2),
        ([0.5, 0.4], {"patience": 1}, 2),
    ],
)
def test_a_run_ends_after_so_many_evaluations_without_improvement(values, choices, expected):
    assert num_evaluations_until_end(patience(**choices), values) == expected


def test_its_state_ends_another_run_at_the_same_evaluation():
    values = [0.3, 0.1, 0.2, 0.1]
    for num_before in range(3):
        before, after = patience(), patience()
        assert num_evaluations_until_end(before, values[:num_before]) is None
        after.load_state_dict(before.state_dict())
        assert num_evaluations_until_end(after, values[num_before:]) == 3 - num_before


def test_wrong_values_are_all_named():
    with pytest.raises(InputError) as caught:
        patience(metric="loss/total", mode="best", patience=0, min_delta=-1, eval_every=None)
    for key in ("metric", "mode", "patience", "min_delta"):
        assert f"stopping.{key}=" in str(caught.value)
    assert "eval_every=null" in str(caught.value)


def test_a_metric_that_is_not_evaluated_is_refused_with_those_that_are():
    with pytest.raises(InputError, match=r"stopping.metric=eval/ap50.*eval/loss/total"):
        patience().update({"eval/loss/total": 1.0})
