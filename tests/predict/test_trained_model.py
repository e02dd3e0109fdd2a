"""`bbu_train.load` on a run that was trained for six steps, beside `python -m bbu_train.predict`."""

import json
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from whole_runs import OTHER_CHOICES

import bbu_train
from bbu_train.errors import InputError
from bbu_train.predict.__main__ import main
from bbu_train.training.setup import build

WHITE = Image.new("RGB", (40, 30), "white")


@pytest.fixture(scope="module")
def pictures(uninterrupted, tmp_path_factory):
    """Three files: a validation picture of the run, one that EXIF turns, and one of greys with transparency."""
    folder = tmp_path_factory.mktemp("pictures")
    known = build(OmegaConf.load(uninterrupted / "config.yaml").data).validation[0].student.path
    (folder / "a-known.jpg").symlink_to(known)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(known).resize((300, 200)).save(folder / "b-turned.jpg", exif=exif)
    Image.open(known).convert("LA").save(folder / "c-grey.png")
    return folder


@pytest.fixture(scope="module")
def model(uninterrupted):
    return bbu_train.load(uninterrupted)


def rows(folder, name="predictions.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def by_score(objects):
    return sorted(objects, key=lambda each: (-each["score"], each["bbox_2d"]))


def written_as(each):
    box = [round(side, 2) for side in each.box_xyxy]
    return {"bbox_2d": box, "desc": each.description, "score": round(each.score, 4)}


def assert_same(results, lines):
    assert [[str(each.image.resolve())] for each in results] == [line["images"] for line in lines]
    for each, line in zip(results, lines, strict=True):
        assert (each.width, each.height) == (line["width"], line["height"])
        assert by_score(map(written_as, each.objects)) == by_score([*line["objects"], *line["unusable"]])


@pytest.mark.parametrize("teachers", [0, 1])
def test_a_loaded_model_finds_what_the_program_finds(uninterrupted, model, pictures, tmp_path, teachers):
    words = [f"run={uninterrupted}", f"images={pictures}", f"teachers={teachers}", "max_new_tokens=6", "threshold=0.02"]
    assert main([*words, f"out={tmp_path}/out"]) == 0
    results = model.predict(pictures, teachers=teachers, threshold=0.02)
    assert any(each.objects for each in results)
    assert_same(results, rows(tmp_path / "out"))
    generated = model.generate(pictures, teachers=teachers, max_new_tokens=6)
    written = rows(tmp_path / "out", "generated.jsonl")
    assert_same(generated, written)
    assert [(each.answer, each.is_malformed) for each in generated] == [
        (line["answer"], line["is_malformed"]) for line in written
    ]


def test_images_in_memory_give_what_their_files_give(model, pictures):
    paths = sorted(pictures.iterdir())
    images = [Image.open(path) for path in paths]
    from_files = model.predict(map(str, paths), threshold=0)
    for one, other in zip(from_files, model.predict(images, threshold=0, batch_size=3), strict=True):
        assert (one.width, one.height) == (other.width, other.height)
        boxes, others = ([each.box_xyxy for each in result.objects] for result in (one, other))
        np.testing.assert_allclose(sorted(boxes), sorted(others), atol=0.05)
    assert (from_files[1].width, from_files[1].height) == (200, 300)


def test_what_was_found_is_drawn_beside_the_truth(model, pictures):
    image = Image.open(pictures / "b-turned.jpg")
    [result] = model.predict(image, threshold=0)
    assert len(result.objects) == 20
    assert [each.score for each in result.objects] == sorted((each.score for each in result.objects), reverse=True)
    assert result.objects[0].class_name == result.objects[0].description.split("/")[0]
    drawn, beside_truth = result.draw(), result.draw(truth=[((10, 10, 90, 60), "screw/loose")])
    assert drawn.width >= 600 <= beside_truth.width
    assert drawn.tobytes() != beside_truth.tobytes()


@pytest.mark.parametrize("truth", [5, [("box", "bbu")], [((1, 2, 3), "bbu")], [((1, 2, 3, 4), 5)], [(1, 2, 3, 4)]])
def test_a_truth_of_another_form_is_refused(model, truth):
    [result] = model.predict(WHITE)
    with pytest.raises(InputError, match=r"truth is not a list of \(\(left, top"):
        result.draw(truth=truth)


def test_an_image_whose_file_was_closed_unread_is_refused(model, pictures):
    with Image.open(pictures / "b-turned.jpg") as image:
        pass
    with pytest.raises(InputError, match="the picture: its file was closed before its pixels were read"):
        model.predict(image)


def test_any_iterable_mix_of_pictures_gives_results_in_its_order(model, pictures):
    known, turned, grey = sorted(pictures.iterdir())
    given = [Image.open(grey), str(turned), known, pictures]
    results = model.predict(iter(given), batch_size=2)
    assert results[0].image is given[0]
    assert [result.image for result in results[1:]] == [turned, known, known, turned, grey]
    assert [result.objects for result in model.predict(given)][:1] == [results[0].objects]
    assert [(result.width, result.height) for result in results[1:2]] == [(200, 300)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
@pytest.mark.parametrize("size", [(9, 1), (1, 9), (40, 30)])
def test_an_image_of_any_mode_and_of_one_row_of_pixels_is_read_and_drawn(model, mode, size):
    [result] = model.predict(Image.new(mode, size))
    assert (result.width, result.height) == size
    assert result.draw().mode == "RGB"


def test_of_an_animation_the_frame_that_it_stands_at_is_read(model, tmp_path):
    frames = [Image.new("RGB", (40, 30), color) for color in ("white", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    second = Image.open(tmp_path / "a.gif")
    second.seek(1)
    first, again, other = model.predict([tmp_path / "a.gif", frames[0], second])
    darkest = [result.draw().getpixel((400, 300)) for result in (first, again, other)]
    assert darkest == [(255,) * 3, (255,) * 3, (0,) * 3]


def test_a_loaded_model_leaves_the_threads_of_torch_alone(uninterrupted):
    import torch

    torch.set_num_threads(2)
    try:
        bbu_train.load(uninterrupted, route="generated")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ("nowhere.jpg", {}, "there is no such file or folder"),
        (np.zeros((8, 8, 3)), {}, r"images is of type ndarray: expected a path or a PIL image. PIL.Image.fromarray"),
        ([WHITE, np.zeros(3)], {}, r"picture 2 of the list is of type ndarray: .* PIL.Image.fromarray"),
        (b"a.jpg", {}, "^images is of type bytes: expected a path or a PIL image. PIL.Image.open"),
        (BytesIO(b"a.jpg"), {}, "^images is of type BytesIO: .* PIL.Image.open"),
        ({"a.jpg": WHITE}, {}, "^images is of type dict: expected a path or a PIL image"),
        (None, {}, "^images is of type NoneType: expected a path or a PIL image"),
        ([7, "nowhere.jpg"], {}, "2 problems"),
        ("", {}, "images='' is empty: expected a picture, a folder or a pattern"),
        ([" "], {}, "images=' ' is empty"),
        ([], {}, "images is empty: expected at least one picture"),
        (__file__, {}, r"test_trained_model.py: not a picture"),
        (Path(__file__).parent, {}, r"no file there ends in .jpg.*It has .*test_trained_model.py"),
        ([WHITE, Image.new("F", (9, 9))], {}, r"picture 2 of the list: 32 bits for each grey"),
        (Image.new("I", (9, 9)), {}, "the picture: 32 bits for each grey"),
        (Image.new("RGB", (0, 5)), {}, "the picture: 0 x 5 pixels; expected at least 1 x 1"),
        ([WHITE, Image.new("RGB", (1, 900))], {}, r"(?m)^  picture 2 of the list is 1 x 900 pixels"),
        (WHITE, {"threshold": 2}, "threshold=2 is of type int: expected a number from 0 to 1"),
        (WHITE, {"threshold": "0.5"}, "threshold='0.5' is of type str: expected a number from 0 to 1"),
        (WHITE, {"threshold": float("nan")}, "threshold=nan is of type float"),
        (WHITE, {"threshold": [0.5]}, r"threshold=\[0.5\] is of type list"),
        (WHITE, {"teachers": -1}, "teachers=-1 is of type int: expected a whole number of at least 0"),
        (WHITE, {"teachers": None}, "teachers=None is of type NoneType"),
        (
            WHITE,
            {"teachers": 100},
            "teachers=100: .* annotated training pictures, and it has 24. Take at most 24",
        ),
        (WHITE, {"batch_size": 0}, "batch_size=0 is of type int: expected a whole number of at least 1"),
        (WHITE, {"batch_size": "4", "num_workers": 0.5}, "2 problems"),
    ],
)
def test_wrong_arguments_are_refused(model, images, options, message):
    with pytest.raises(InputError, match=message) as caught:
        model.predict(images, **options)
    assert "/tmp/bbu_train-" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(model):
    [result] = model.predict(WHITE, threshold=np.float32(0), batch_size=np.int64(2))
    assert result.objects
    assert result.threshold == 0


def cut_weights(folder):
    weights = folder / "checkpoints/step-00000006/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def remove_checkpoints(folder):
    shutil.rmtree(folder / "checkpoints")


def change(old, new):
    def change_config(folder):
        config = (folder / "config.yaml").read_text()
        assert old in config
        (folder / "config.yaml").write_text(config.replace(old, new))

    return change_config


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (shutil.rmtree, {}, "no such folder"),
        (remove_checkpoints, {"checkpoint": "last"}, "There is no checkpoint in"),
        (cut_weights, {"checkpoint": "last"}, "step 6 is damaged: .* it has .* bytes, expected"),
        (
            change("num_queries: 20", "num_queries: 21"),
            {},
            r"head.query.weight .* \(20, 64\) .* \(21, 64\)",
        ),
        (lambda folder: None, {"checkpoint": 7}, "Steps saved there: 3, 6"),
        (
            lambda folder: None,
            {"checkpoint": "newest"},
            "checkpoint='newest' is of type str: expected 'best', 'last' or a step",
        ),
        (
            lambda folder: None,
            {"route": "heads"},
            "route='heads' is of type str: expected 'both', 'head' or 'generated'",
        ),
        (lambda folder: None, {"checkpoint": True}, "checkpoint=True is of type bool"),
        (lambda folder: None, {"checkpoint": None, "route": ["head"]}, "2 problems"),
        (lambda folder: None, {"device": 0}, "device=0 is of type int"),
        (lambda folder: None, {"data_root": 5}, "data_root=5 is of type int: expected the path of a folder"),
        (
            lambda folder: None,
            {"device": "cuda:99"},
            "device='cuda:99' is of type str: expected one that this machine has, 'cpu'",
        ),
    ],
)
def test_a_run_or_option_that_cannot_be_loaded_is_refused(uninterrupted, tmp_path, damage, options, message):
    damage(shutil.copytree(uninterrupted, tmp_path / "moved"))
    with pytest.raises(InputError, match=message):
        bbu_train.load(tmp_path / "moved", **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "run='' is of type str: expected the path of a folder"),
        (None, "run=None is of type NoneType: expected the path of a folder"),
        (3, "run=3 is of type int"),
        ("{}", "There is no run in .*: no config.yaml, only conf.$"),
        ("{}/conf", "conf/config.yaml is not the config of a run. Expected the folder that a run has written.$"),
        ("{}/conf/model", "There is no run in .*: no config.yaml, only tiny.yaml"),
    ],
)
def test_what_is_no_run_is_refused_in_a_sentence(tmp_path, given, message):
    (tmp_path / "conf/model").mkdir(parents=True)
    for name in ("config.yaml", "model/tiny.yaml"):
        shutil.copy(Path(__file__).parents[2] / "conf" / name, tmp_path / "conf" / name)
    with pytest.raises(InputError, match=message):
        bbu_train.load(given.format(tmp_path) if isinstance(given, str) else given)


def test_a_run_without_an_evaluation_gives_its_last_checkpoint_and_says_so(uninterrupted, tmp_path, caplog):
    shutil.copytree(uninterrupted, tmp_path / "run")
    change("best_metric: eval/", "best_metric: eval/never_")(tmp_path / "run")
    assert bbu_train.load(tmp_path / "run").predict(WHITE)
    assert "has eval/never_" in caplog.text
    assert "so none is the best: the last one is taken, that of step 6" in caplog.text


def test_a_model_without_a_head_only_generates(run, pictures):
    folder = run("others", *OTHER_CHOICES)
    with pytest.raises(InputError, match=r"has no head \(head=none\). Take route='generated'"):
        bbu_train.load(folder)
    model = bbu_train.load(folder, checkpoint="last", route="generated")
    with pytest.raises(InputError, match="Load it with route=.head."):
        model.predict(pictures)
    [result] = model.generate(pictures / "a-known.jpg", max_new_tokens=2)
    assert result.answer is not None


def test_importing_the_package_imports_no_torch():
    program = "import bbu_train, sys; sys.exit('torch' in sys.modules or 'load' not in bbu_train.__all__)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (Path(bbu_train.__file__).parent / "py.typed").exists()
