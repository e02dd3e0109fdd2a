"""`bbu_train.load` on a run that was trained for six steps, beside `python -m bbu_train.predict`."""

import json
import shutil
import subprocess
import sys
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


def assert_same(found, lines):
    assert [[str(each.image.resolve())] for each in found] == [line["images"] for line in lines]
    for each, line in zip(found, lines, strict=True):
        assert (each.width, each.height) == (line["width"], line["height"])
        assert by_score(map(written_as, each.objects)) == by_score([*line["objects"], *line["unusable"]])


@pytest.mark.parametrize("teachers", [0, 1])
def test_a_loaded_model_finds_what_the_program_finds(uninterrupted, model, pictures, tmp_path, teachers):
    words = [f"run={uninterrupted}", f"images={pictures}", f"teachers={teachers}", "max_new_tokens=6", "threshold=0.02"]
    assert main([*words, f"out={tmp_path}/out"]) == 0
    found = model.predict(pictures, teachers=teachers, threshold=0.02)
    assert any(each.objects for each in found)
    assert_same(found, rows(tmp_path / "out"))
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
        boxes, others = ([each.box_xyxy for each in found.objects] for found in (one, other))
        np.testing.assert_allclose(sorted(boxes), sorted(others), atol=0.05)
    assert (from_files[1].width, from_files[1].height) == (200, 300)


def test_what_was_found_is_drawn_beside_the_truth(model, pictures):
    image = Image.open(pictures / "b-turned.jpg")
    [found] = model.predict(image, threshold=0)
    assert len(found.objects) == 20
    assert [each.score for each in found.objects] == sorted((each.score for each in found.objects), reverse=True)
    assert found.objects[0].class_name == found.objects[0].description.split("/")[0]
    drawn, beside_truth = found.draw(), found.draw(truth=[((10, 10, 90, 60), "screw/loose")])
    assert drawn.width >= 600 <= beside_truth.width
    assert drawn.tobytes() != beside_truth.tobytes()


def test_no_picture_gives_nothing(model):
    assert model.predict([]) == []


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
        (np.zeros((8, 8, 3)), {}, r"images\[0\] is of type ndarray: expected a path or a PIL image"),
        ([7, "nowhere.jpg"], {}, "2 problems"),
        ([Image.new("F", (9, 9))], {}, r"images\[0\]: 32 bits for each grey"),
        ([], {"threshold": 2}, "threshold is a number from 0 to 1"),
        ([], {"teachers": -1}, "teachers is a whole number of at least 0"),
        ([], {"batch_size": 0}, "batch_size is a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(model, images, options, message):
    with pytest.raises(InputError, match=message):
        model.predict(images, **options)


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
        (lambda folder: None, {"checkpoint": "newest"}, "checkpoint is best, last or a step"),
        (lambda folder: None, {"route": "heads"}, "route is both, head or generated"),
        (lambda folder: None, {"device": "cuda:99"}, "device=cuda:99: this machine has cpu"),
    ],
)
def test_a_run_that_cannot_be_loaded_is_refused(uninterrupted, tmp_path, damage, options, message):
    damage(shutil.copytree(uninterrupted, tmp_path / "moved"))
    with pytest.raises(InputError, match=message):
        bbu_train.load(tmp_path / "moved", **options)


def test_a_model_without_a_head_only_generates(run, pictures):
    folder = run("others", *OTHER_CHOICES)
    with pytest.raises(InputError, match=r"has no head \(head=none\). Take route=generated"):
        bbu_train.load(folder)
    model = bbu_train.load(folder, checkpoint="last", route="generated")
    with pytest.raises(InputError, match="Load it with route=.head."):
        model.predict(pictures)
    [found] = model.generate(pictures / "a-known.jpg", max_new_tokens=2)
    assert found.answer is not None


def test_importing_the_package_imports_no_torch():
    program = "import bbu_train, sys; sys.exit('torch' in sys.modules or 'load' not in bbu_train.__all__)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (Path(bbu_train.__file__).parent / "py.typed").exists()
