"""Values of a config that are wrong are refused together, each with what is expected, before data or model load."""

import pytest

from bbu_train.errors import InputError
from bbu_train.training import config_checks

WRONG = {
    "seed": [(-1, "a whole number of at least 0"), (2**63, "at most 9223372036854775807")],
    "steps": [(-1, "a whole number of at least 0"), (1.5, "a whole number of at least 0")],
    "log_every": [(0, "a whole number of at least 1"), ("null", "a whole number of at least 1")],
    "eval_every": [(0, "a whole number of at least 1, or null for never")],
    "save_every": [(1.5, "a whole number of at least 1, or null for never")],
    "gallery": [("null", "a whole number of at least 0")],
    "threads": [(0, "auto or a whole number of at least 1")],
    "num_workers": [(-1, "auto or a whole number of at least 0")],
    "model.compile": [("maybe", "take auto, true, false")],
    "engine.num_micro_batches": [(0, "auto or a whole number of at least 1")],
    "engine.max_grad_norm": [(-1, "a number above 0, or null for no limit")],
    "collator.max_tokens": [(0, "a whole number of at least 1")],
    "collator.too_long": [("cut", "error or drop")],
    "head.max_caption_tokens": [(0, "a whole number of at least 1")],
    "head.d_model": [(250, "a multiple of 4 x head.num_heads=4, such as 240 or 256")],
    "cluster.tasks_per_node": [(0, "a whole number of at least 1")],
    "augmentation.left_right": [(1.5, "a number from 0 to 1")],
    "sampler.num_samples": [(0, "a whole number of at least 1")],
    "schedule.num_warmup_steps": [(101, "Expected at most 100")],
    "loss.weights.giou": [(-1, "a number, 0 (without this loss) or above"), ("nan", "a number, 0")],
    "loss.matcher.l1": [(-2, "a number, 0")],
    "loss.aux_weight": [("inf", "a number, 0")],
    "loss.objectness.alpha": [(2, "a number from 0 to 1")],
    "average.decay": [(1, "a number from 0 to below 1"), ("null", "a number from 0 to below 1")],
    "checkpoint.keep_last": [(0, "a whole number of at least 1")],
}
CHOICES = "average=ema", "augmentation=flips", "steps=100"


@pytest.mark.parametrize(("key", "cases"), WRONG.items(), ids=WRONG)
def test_a_wrong_value_is_refused_with_what_is_expected(config, key, cases):
    for value, expected in cases:
        with pytest.raises(InputError) as refused:
            config_checks.check(config(*CHOICES, f"{key}={value}"))
        head, *lines, remedy = str(refused.value).splitlines()
        assert head == "The config: 1 problem."
        assert lines[0].startswith(f"  {key}=") and expected in lines[0]
        assert remedy == "Correct the values listed."


def test_wrong_values_of_all_components_are_refused_together_before_the_data_is_read(config):
    from bbu_train.training.setup import prepare

    values = [f"{key}={cases[0][0]}" for key, cases in WRONG.items() if key != "steps"]  # others depend on it
    with pytest.raises(InputError) as refused:
        prepare(config(*CHOICES, *values, "data=jsonl"))
    assert f": {len(WRONG) - 1} problems." in str(refused.value)


def test_limits_that_contradict_each_other_are_refused(config):
    with pytest.raises(InputError, match=r"model.min_pixels=9000 is above model.max_pixels=8000: give one"):
        config_checks.check(config("model.min_pixels=9000", "model.max_pixels=8000"))


@pytest.mark.parametrize("choices", [("head=none", "loss=language"), ("eval_every=null", "save_every=null")])
def test_what_a_run_leaves_out_is_not_refused(config, choices):
    config_checks.check(config(*choices))
