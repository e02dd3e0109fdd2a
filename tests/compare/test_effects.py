import itertools

import numpy as np
import pytest

from bbu_train.compare import tables
from bbu_train.compare.effects import effects, size

RATE, WEIGHT = {1e-6: 0.1, 1e-5: 0.3, 1e-4: 0.2}, {1: 0.0, 2: 0.05}


def of(settings):
    """The effects where the metric is the sum of a part for the rate and a part for the weight."""
    values = [RATE[rate] + WEIGHT[weight] for rate, weight in settings]
    return effects(values, [{"rate": rate, "weight": weight} for rate, weight in settings], ["weight", "rate"])


def differences(found, key):
    first = found.by_key[key][0].adjusted_mean
    return [level.adjusted_mean - first for level in found.by_key[key]]


def test_in_a_balanced_sweep_the_effects_are_the_plain_means():
    found = of(list(itertools.product(RATE, WEIGHT)))
    assert found.balanced
    assert [level.mean for level in found.by_key["rate"]] == pytest.approx([0.125, 0.325, 0.225])
    assert found.explained == pytest.approx(1)


def test_in_an_unbalanced_sweep_they_are_still_those_of_the_keys_and_plain_means_are_not():
    found = of([(1e-6, 2), (1e-6, 2), (1e-5, 1), (1e-4, 1), (1e-4, 2)])
    assert not found.balanced
    assert differences(found, "rate") == pytest.approx([0, 0.2, 0.1])
    assert differences(found, "weight") == pytest.approx([0, 0.05])
    plain = [level.mean for level in found.by_key["rate"]]
    assert plain[1] - plain[0] != pytest.approx(0.2)


def test_keys_that_change_only_together_are_said_and_nothing_is_adjusted():
    found = of([(1e-6, 1), (1e-5, 2)])
    assert found.explained is None
    assert [level.adjusted_mean for level in found.by_key["rate"]] == pytest.approx([0.1, 0.35])
    assert "cannot be told" in tables.about_effects(found)


def test_as_many_unknowns_as_runs_prove_nothing():
    assert "nothing checks" in tables.about_effects(of([(1e-6, 1), (1e-5, 1), (1e-4, 1), (1e-4, 2)]))


def test_keys_that_act_together_leave_variance_unexplained():
    corners = list(itertools.product((0, 1), (0, 1)))
    found = effects([float(a != b) for a, b in corners], [{"a": a, "b": b} for a, b in corners], ["a", "b"])
    assert found.explained == pytest.approx(0)


def test_the_key_that_matters_most_comes_first_and_its_values_are_in_order():
    found = of(list(itertools.product(reversed(RATE), WEIGHT)))
    assert list(found.by_key) == ["rate", "weight"]
    assert [level.value for level in found.by_key["rate"]] == [1e-6, 1e-5, 1e-4]
    assert size(found.by_key["rate"]) == pytest.approx(0.2)


def test_many_different_numbers_are_looked_at_in_quarters():
    rates = np.geomspace(1e-6, 1e-3, 20).tolist()
    found = effects([float(np.log10(rate)) for rate in rates], [{"rate": rate} for rate in rates], ["rate"])
    levels = found.by_key["rate"]
    assert [len(level.observed) for level in levels] == [5, 5, 5, 5]
    assert levels[0].value.startswith("1e-6 to ")
    means = [level.mean for level in levels]
    assert means == sorted(means)


def test_a_metric_that_never_changes_has_effects_of_nothing():
    found = effects([0.5, 0.5, 0.5], [{"a": 1}, {"a": 2}, {"a": 2}], ["a"])
    assert size(found.by_key["a"]) == 0
    assert tables.about_effects(found)
