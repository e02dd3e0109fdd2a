import math

import pytest
from PIL import Image

from bbu_train.errors import InputError
from bbu_train.training import setup
from bbu_train.types.samples import Sample


def test_pictures_with_more_objects_than_queries_are_all_named(samples):
    with pytest.raises(InputError, match=r"(?s)head.num_queries=1.*a: 3 objects.*b: 2 objects.*Raise head.num_queries"):
        setup.check_num_objects(samples, num_queries=1)


def test_a_model_without_a_head_takes_any_number_of_objects(samples):
    setup.check_num_objects(samples, num_queries=None)


def test_counts_that_are_too_small_or_no_whole_numbers_are_listed_together(config):
    wrong = {
        "steps": -1,
        "gallery": "null",
        "eval_every": 0,
        "save_every": 1.5,
        "head.max_caption_tokens": 0,
    }
    with pytest.raises(InputError) as error:
        setup.prepare(config(*(f"{key}={value}" for key, value in wrong.items())))
    for key, value in wrong.items():
        assert (
            f"{key}={None if value == 'null' else value}: expected a whole number of at least {setup.MINIMUMS[key]}"
            in str(error.value)
        )
    with pytest.raises(InputError, match=r"threads=0: expected auto or a whole number of at least 1") as error:
        setup.prepare(config("threads=0", "model.compile=maybe", "engine.num_micro_batches=0"))
    assert "model.compile=maybe: take auto, true, false" in str(error.value)
    assert "engine.num_micro_batches=0" in str(error.value)
    setup.check_counts(config("head=none", "loss=language", "eval_every=null", "save_every=null", "steps=0"))


@pytest.mark.parametrize("limit", [0, 101])
def test_a_limit_without_positions_is_refused(limit):
    with pytest.raises(InputError, match="positions for 1 to 100 tokens"):
        setup.check_max_tokens(limit, max_positions=100)


def test_a_loss_that_does_not_train_the_head_is_refused_with_it(config):
    for head in ("detr", "dino"):
        with pytest.raises(InputError, match=r"the head would stay random. Take head=none or loss=joint"):
            setup.prepare(config("loss=language", f"head={head}"))
    for choices in (["head=none", "loss=language"], ["head=none", "loss=joint"], ["loss=varifocal"]):
        setup.check_head_is_trained(config(*choices))


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


def test_copies_in_the_pool_of_teachers_count_once_before_the_model_loads(config, tmp_path):
    for name in ("a.png", "copy.png", "again.png"):
        Image.new("RGB", (56, 56), "red").save(tmp_path / name)
    line = '{"images": ["%s"], "objects": [{"bbox_2d": [1, 2, 30, 40], "desc": "screw"}]}\n'
    (tmp_path / "train.jsonl").write_text("".join(line % name for name in ("a.png", "copy.png", "again.png")))
    (tmp_path / "validation.jsonl").write_text(line % "a.png")
    one_teacher = "data.teachers.num_teachers=1", "data.teachers.num_validation_teachers=0"
    with pytest.raises(InputError, match=r"holds 1 different picture, but data\.teachers\.num_teachers=1 needs 2"):
        setup.load_data(config("data=jsonl", f"data.root={tmp_path}", *one_teacher).data)


def test_the_length_of_a_run_is_exact_in_epochs_and_needs_no_steps_then(config):
    assert math.ceil(0.28 * 25) == 8
    assert setup.planned_length(config("epochs=0.28", "steps=null")) * 25 == 7
    assert setup.planned_length(config("steps=9")) == 9
    setup.check_counts(config("epochs=0.28", "steps=null"))
    with pytest.raises(InputError, match="steps=None: expected a whole number of at least 0"):
        setup.check_counts(config("steps=null"))
