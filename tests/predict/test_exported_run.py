"""Exported models where a run is taken: `bbu_train.load`, predict and evaluate."""

import json
import shutil

import pytest
from made_runs import SMALL, make_run
from omegaconf import OmegaConf
from transformers import Qwen2_5_VLForConditionalGeneration

import bbu_train
from bbu_train.errors import InputError
from bbu_train.evaluate.__main__ import main as evaluate
from bbu_train.export.__main__ import main as export
from bbu_train.predict.__main__ import main as predict
from bbu_train.training.setup import build


@pytest.fixture(scope="module")
def exported(uninterrupted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert export([f"run={uninterrupted}", f"to={folder}", "dtype=fp32", "checkpoint=last"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(uninterrupted):
    return bbu_train.load(uninterrupted, checkpoint="last")


@pytest.fixture(scope="module")
def pictures(uninterrupted):
    data = build(OmegaConf.load(uninterrupted / "config.yaml").data)
    return [sample.student.path for sample in data.validation]


@pytest.fixture(scope="module")
def made(config, resolved_config, tmp_path_factory):
    """A function from overrides to the folder of a run that was made, not trained."""
    outputs = tmp_path_factory.mktemp("outputs")

    def make(name, *choices):
        words = [*([] if "head=none" in choices else SMALL), *choices, f"outputs={outputs}", f"run={name}"]
        return make_run(config(*words), resolved_config(*words))

    return make


def assert_same(one, other, pictures, threshold=0.0):
    for result, same in zip(*(model.predict(pictures, threshold=threshold) for model in (one, other)), strict=True):
        assert result.objects == same.objects
    assert one.threshold == other.threshold
    for result, same in zip(*(model.generate(pictures, max_new_tokens=6) for model in (one, other)), strict=True):
        assert (result.answer, result.objects) == (same.answer, same.objects)


def test_an_exported_model_finds_what_its_run_finds(trained, exported, pictures):
    assert_same(trained, bbu_train.load(exported), pictures)


def test_padded_bfloat16_weights_are_loaded_as_they_were(made, tmp_path, pictures):
    run = made("padded", "engine.precision=bf16", "model.vision_mlp_multiple=64", "average=ema")
    assert export([f"run={run}", f"to={tmp_path}/to", "dtype=fp32"]) == 0
    assert_same(bbu_train.load(run), bbu_train.load(tmp_path / "to"), pictures[:2])


def test_image_positions_are_exported_for_bbu_train_alone(made, tmp_path, pictures, capsys):
    run = made("positions", "model.image_position_scale=2")
    assert export([f"run={run}", f"to={tmp_path}/to"]) == 2
    assert "form=bbu_train exports it for bbu_train.load" in capsys.readouterr().err
    assert export([f"run={run}", f"to={tmp_path}/to", "form=bbu_train", "dtype=fp32"]) == 0
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["head"]
    with pytest.raises(OSError, match="no file named model.safetensors"):
        Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "to")
    assert_same(bbu_train.load(run), bbu_train.load(tmp_path / "to"), pictures[:2])
    assert "sine encoding" in " ".join((tmp_path / "to/head/README.md").read_text().split())


def test_a_model_without_a_head_only_generates(made, tmp_path, pictures):
    run = made("bare", "head=none", "loss=language")
    assert export([f"run={run}", f"to={tmp_path}/to", "dtype=fp32"]) == 0
    with pytest.raises(InputError, match=r"has no head \(head=none\). Take route='generated'"):
        bbu_train.load(tmp_path / "to")
    models = (bbu_train.load(folder, route="generated") for folder in (run, tmp_path / "to"))
    first, second = (model.generate(pictures[:1], max_new_tokens=4)[0].answer for model in models)
    assert first == second


def test_programs_take_the_exported_folder_like_the_run(uninterrupted, exported, trained, pictures, tmp_path):
    words = [f"run={exported}", f"images={pictures[0]}", "route=head", "threshold=0", f"out={tmp_path}/results"]
    assert predict(words) == 0
    results = json.loads((tmp_path / "results/predictions.jsonl").read_text())
    [expected] = trained.predict(pictures[0], threshold=0)
    scores = sorted((each["score"] for each in (*results["objects"], *results["unusable"])), reverse=True)
    assert scores == [round(each.score, 4) for each in expected.objects]
    scored = []
    for name, words in (("run", [f"run={uninterrupted}", "checkpoint=last"]), ("exported", [f"run={exported}"])):
        assert evaluate([*words, "route=head", "teachers=0", f"out={tmp_path}/{name}"]) == 0
        [row] = json.loads((tmp_path / name / "table.json").read_text())["rows"]
        scored.append({metric: value for metric, value in row.items() if metric != "seconds"})
    assert scored[0] == scored[1]


def remove(name):
    return lambda folder: (folder / name).unlink()


def another_head(folder):
    """The head of another export, whose weights have the same shapes."""
    path = folder / "head/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def another_shape(folder):
    path = folder / "head/run.yaml"
    path.write_text(path.read_text().replace("num_queries: 20", "num_queries: 21"))


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "head"), {}, "published model without head/export.json"),
        (remove("head/model.safetensors"), {}, "is not whole: head/model.safetensors is missing"),
        (remove("model.safetensors"), {}, "is not whole: model.safetensors is missing"),
        (another_head, {}, "head/model.safetensors is not the file that was exported with head"),
        (another_shape, {}, r"head.query.weight has the shape \(20, 64\) .* \(21, 64\) in the model"),
        (
            lambda folder: (folder / "head/export.json").write_text("{"),
            {},
            "export.json is damaged. Export the run again",
        ),
        (lambda folder: None, {"checkpoint": 3}, "was exported from step 6, and holds no other"),
    ],
)
def test_a_missing_or_mismatching_head_is_refused_by_name(exported, tmp_path, damage, options, message):
    folder = shutil.copytree(exported, tmp_path / "copied")
    damage(folder)
    with pytest.raises(InputError, match=message):
        bbu_train.load(folder, **options)
