import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from PIL import Image

from bbu_train.errors import InputError
from bbu_train.training import config_checks, setup
from bbu_train.types.samples import Sample


def test_pictures_with_more_objects_than_queries_are_all_named(samples):
    with pytest.raises(
        InputError,
        match=r"(?s)head.num_queries=1.*a: 3 objects.*b: 2 objects.*Give head.num_queries=3 or more: .* is 3, in a",
    ):
        setup.check_num_objects(samples, num_queries=1)


def test_a_model_without_a_head_takes_any_number_of_objects(samples):
    setup.check_num_objects(samples, num_queries=None)


@pytest.mark.parametrize("limit", [0, 101])
def test_a_limit_without_positions_is_refused(limit):
    with pytest.raises(InputError, match=r"positions for 1 to 100 tokens. Give collator.max_tokens=100"):
        setup.check_max_tokens(limit, max_positions=100)


def test_a_loss_that_does_not_train_the_head_is_refused_with_it(config):
    for head in ("detr", "dino"):
        with pytest.raises(InputError, match=r"the head would stay random. Take head=none or loss=joint"):
            setup.prepare(config("loss=language", f"head={head}"))
    for choices in (["head=none", "loss=language"], ["head=none", "loss=joint"], ["loss=varifocal"]):
        setup.check_head_is_trained(config(*choices))


@pytest.mark.parametrize(
    ("num_micro_batches", "num_ranks", "most"), [("auto", 1, None), (2, 1, None), (3, 1, 2), (1, 2, None), (2, 2, 1)]
)
def test_more_micro_batches_than_samples_are_refused_with_the_most(num_micro_batches, num_ranks, most):
    plan = SimpleNamespace(most_samples=2, num_steps=5)
    expected = rf"no step has more than 2 samples.*at most engine.num_micro_batches={most},"
    with nullcontext() if most is None else pytest.raises(InputError, match=expected):
        setup.check_num_micro_batches(plan, num_micro_batches, num_ranks)


def test_a_class_that_is_not_there_cannot_choose_the_best_checkpoint(samples):
    setup.check_class_of_metric("checkpoint.best_metric", "eval/ap50", samples)
    setup.check_class_of_metric("checkpoint.best_metric", "eval/ap50/screw", samples)
    with pytest.raises(InputError, match=r"no validation picture has an object of class scrwe. There are: screw"):
        setup.check_class_of_metric("checkpoint.best_metric", "eval/ap50/scrwe", samples)


def test_a_step_that_asks_for_more_samples_than_there_are_is_said(config, caplog):
    setup.prepare(config("data=overfit", "data.num_samples=3", "sampler.num_samples=4", "engine.num_micro_batches=3"))
    assert "sampler.num_samples=4: no step has more than 3 samples, because the training split has 3." in caplog.text
    with pytest.raises(InputError, match="at most engine.num_micro_batches=3,"):
        setup.prepare(config("data=overfit", "data.num_samples=3", "engine.num_micro_batches=4"))


def test_descriptions_longer_than_the_head_writes_are_counted_before_the_model_loads(builder, make_picture, caplog):
    box = (0, 0, 20, 20)
    objects = [(box, "screw"), (box, "screw, loose, loose"), (box, "screw, loose"), (box, "screw")]
    samples = [
        Sample(f"train.jsonl:{i}", make_picture(f"long{i}", 56, 56, each), None) for i, each in enumerate(objects)
    ]
    longest = builder.num_caption_tokens("screw, loose, loose")
    setup.warn_of_long_descriptions(builder, samples, longest)
    setup.warn_of_long_descriptions(builder, samples, None)
    assert not caplog.text
    setup.warn_of_long_descriptions(builder, samples, builder.num_caption_tokens("screw"))
    assert "2 of 4 training objects have a description" in caplog.text
    assert f"the first of them in train.jsonl:1, the longest with {longest}" in caplog.text
    assert f"head.max_caption_tokens={longest} takes them whole" in caplog.text


def test_copies_in_the_pool_of_teachers_count_once_before_the_model_loads(config, tmp_path):
    for name in ("a.png", "copy.png", "again.png"):
        Image.new("RGB", (56, 56), "red").save(tmp_path / name)
    line = '{"images": ["%s"], "objects": [{"bbox_2d": [1, 2, 30, 40], "desc": "screw"}]}\n'
    (tmp_path / "train.jsonl").write_text("".join(line % name for name in ("a.png", "copy.png", "again.png")))
    (tmp_path / "validation.jsonl").write_text(line % "a.png")
    one_teacher = "data.teachers.num_teachers=1", "data.teachers.num_validation_teachers=0"
    with pytest.raises(InputError, match=r"(?s)holds 1 different picture: .*num_teachers=1 needs 2"):
        setup.load_data(config("data=jsonl", f"data.root={tmp_path}", *one_teacher).data)


def test_the_length_of_a_run_is_exact_in_epochs_and_needs_no_steps_then(config):
    assert math.ceil(0.28 * 25) == 8
    assert setup.planned_length(config("epochs=0.28", "steps=null")) * 25 == 7
    assert setup.planned_length(config("steps=9")) == 9
    config_checks.check(config("epochs=0.28", "steps=null"))
    with pytest.raises(InputError, match="steps=null: expected a whole number: 0 to evaluate"):
        config_checks.check(config("steps=null"))
