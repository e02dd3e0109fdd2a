import itertools

import numpy as np
import pytest

from bbu_train.compare import tables
from bbu_train.compare.effects import effect_range, estimate_effects

RATE, WEIGHT = {1e-6: 0.1, 1e-5: 0.3, 1e-4: 0.2}, {1: 0.0, 2: 0.05}


def estimate(settings):
    """Estimate the effects if the metric is the sum of an effect of the rate and an effect of the weight."""
    values = [RATE[rate] + WEIGHT[weight] for rate, weight in settings]
    return estimate_effects(values, [{"rate": rate, "weight": weight} for rate, weight in settings], ["weight", "rate"])


def differences(effects, key):
    """The difference of each level to the first."""
    first = effects.by_key[key][0].adjusted_mean
    return [level.adjusted_mean - first for level in effects.by_key[key]]


def test_in_a_balanced_sweep_the_effects_are_the_plain_means():
    effects = estimate(list(itertools.product(RATE, WEIGHT)))
    assert not effects.is_adjusted
    assert [level.mean for level in effects.by_key["rate"]] == pytest.approx([0.125, 0.325, 0.225])
    assert effects.r_squared == pytest.approx(1)


def test_in_an_unbalanced_sweep_adjusted_means_give_the_effects_and_plain_means_do_not():
    effects = estimate([(1e-6, 2), (1e-6, 2), (1e-5, 1), (1e-4, 1), (1e-4, 2)])
    assert effects.is_adjusted
    assert differences(effects, "rate") == pytest.approx([0, 0.2, 0.1])
    assert differences(effects, "weight") == pytest.approx([0, 0.05])
    plain = [level.mean for level in effects.by_key["rate"]]
    assert plain[1] - plain[0] != pytest.approx(0.2)


def test_keys_that_only_vary_together_are_reported_and_nothing_is_adjusted():
    effects = estimate([(1e-6, 1), (1e-5, 2)])
    assert effects.r_squared is None
    assert [level.adjusted_mean for level in effects.by_key["rate"]] == pytest.approx([0.1, 0.35])
    assert "cannot be separated" in tables.effects_note(effects)


def test_a_model_with_as_many_parameters_as_runs_is_reported_as_untested():
    assert "nothing tests its fit" in tables.effects_note(estimate([(1e-6, 1), (1e-5, 1), (1e-4, 1), (1e-4, 2)]))


def test_an_interaction_of_keys_is_unexplained_variance():
    corners = list(itertools.product((0, 1), (0, 1)))
    effects = estimate_effects([float(a != b) for a, b in corners], [{"a": a, "b": b} for a, b in corners], ["a", "b"])
    assert effects.r_squared == pytest.approx(0)


def test_the_key_with_the_largest_effect_comes_first_and_its_values_are_sorted():
    effects = estimate(list(itertools.product(reversed(RATE), WEIGHT)))
    assert list(effects.by_key) == ["rate", "weight"]
    assert [level.value for level in effects.by_key["rate"]] == [1e-6, 1e-5, 1e-4]
    assert effect_range(effects.by_key["rate"]) == pytest.approx(0.2)


def test_many_different_numbers_are_divided_into_quartiles():
    rates = np.geomspace(1e-6, 1e-3, 20).tolist()
    effects = estimate_effects([float(np.log10(rate)) for rate in rates], [{"rate": rate} for rate in rates], ["rate"])
    levels = effects.by_key["rate"]
    assert [len(level.observed) for level in levels] == [5, 5, 5, 5]
    assert levels[0].value.startswith("1e-6 to ")
    means = [level.mean for level in levels]
    assert means == sorted(means)


def test_a_metric_that_never_changes_has_effects_of_zero():
    effects = estimate_effects([0.5, 0.5, 0.5], [{"a": 1}, {"a": 2}, {"a": 2}], ["a"])
    assert effect_range(effects.by_key["a"]) == 0
    assert tables.effects_note(effects)
