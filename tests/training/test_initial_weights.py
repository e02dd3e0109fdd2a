"""`init`: a run begins with the weights of another run, or of an exported model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from whole_runs import draw_nothing, rows, settings

from bbu_train.errors import InputError
from bbu_train.export.__main__ import main as export
from bbu_train.reporting import final_report
from bbu_train.runs.identity import run_identity
from bbu_train.runs.resume import resolve_run
from bbu_train.train import train
from bbu_train.training import initial_weights
from bbu_train.training.outline import build_outline
from bbu_train.training.setup import build

ONE_STEP = ["steps=1", "save_every=1", "schedule.num_warmup_steps=0"]


@pytest.fixture(scope="module")
def begin(config, outputs):
    """A function from overrides to the config of a run that begins, as `python -m bbu_train` resolves it."""

    def resolve(name, *overrides):
        words = settings(outputs, name, overrides)
        return resolve_run(config(*words), "smoke", words, in_sweep=False)

    return resolve


@pytest.fixture(scope="module")
def exported(uninterrupted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert export([f"run={uninterrupted}", f"to={folder}", "dtype=fp32", "checkpoint=last"]) == 0
    return folder


@pytest.fixture
def copied(uninterrupted, tmp_path):
    return Path(shutil.copytree(uninterrupted, tmp_path / "copied"))


@pytest.fixture(scope="module")
def resolved():
    """A function from a config to the same one in which nothing is "auto"."""
    from conftest import resolved

    return resolved


def notes_on(cfg, resolve):
    cfg = resolve(cfg)
    return initial_weights.check(cfg, build_outline(cfg).model)


def evaluation(folder, step):
    (row,) = (row for row in rows(folder) if row["step"] == step and "eval/ap" in row)
    return row | {"step": step}


def test_a_run_begins_where_the_weights_of_init_are_and_is_resumed_without_them(
    begin, uninterrupted, copied, monkeypatch
):
    monkeypatch.setattr(final_report, "write_plots", draw_nothing)
    cfg = begin("next", f"init={copied}", "model.vision_mlp_multiple=32", "gallery=0", *ONE_STEP)
    folder = Path(cfg.folder)
    train(cfg)
    before, after = evaluation(uninterrupted, 6), evaluation(folder, 0)
    assert before.pop("step") != after.pop("step")
    assert after == pytest.approx(before, rel=1e-4, abs=1e-5, nan_ok=True)
    shutil.rmtree(copied)
    resumed = OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), {"resume": str(folder)})
    train(resolve_run(resumed, "smoke", [], in_sweep=False))


def test_an_exported_model_has_the_weights_of_its_run(begin, uninterrupted, exported, resolved):
    models = []
    for init in (uninterrupted, exported):
        cfg = resolved(begin("new", f"init={init}"))
        model = build(cfg.model.network)(device=torch.device("cpu"), head=build(cfg.head))
        initial_weights.load(cfg, model, should_verify=True)
        models.append(model.state_dict())
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_of_a_run_init_takes_the_best_checkpoint_and_notes_which(begin, uninterrupted):
    assert begin("best", f"init={uninterrupted}").init == str(uninterrupted / "checkpoints/step-00000006")


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ["head.num_queries=30"],
            "of the head start at random: head.query.weight is 20 x 64 in init and 30 x 64",
        ),
        (["head=dino", "loss=varifocal"], "of the head start at random: "),
        (["head=none", "loss=language"], "weights of init not used: the model lacks head."),
        (["conversation.layout=qwen"], "conversation.layout=qwen, but the weights of init were trained with compact"),
    ],
)
def test_what_does_not_fit_is_named(overrides, note, begin, uninterrupted, resolved):
    notes = notes_on(begin("other", f"init={uninterrupted}", *overrides), resolved)
    assert any(note in each for each in notes), notes


def test_weights_of_another_model_are_refused_before_it_loads(begin, uninterrupted, resolved):
    cfg = begin("narrow", f"init={uninterrupted}", "model.shape.text_config.intermediate_size=128")
    with pytest.raises(InputError, match=r"(?s)another model.*down_proj.weight is 128 x 256 in init and 128 x 128"):
        notes_on(cfg, resolved)


def test_the_identity_holds_the_weights_and_not_where_they_lie(begin, uninterrupted, copied, exported):
    here, there = (begin("same", f"init={folder}") for folder in (uninterrupted, copied))
    assert run_identity(here) == run_identity(there) != run_identity(begin("same"))
    assert run_identity(begin("same", f"init={exported}")) != run_identity(here)


def test_other_weights_than_at_the_start_are_refused(begin, copied, resolved):
    cfg = begin("changed", f"init={copied}")
    path = copied / "checkpoints/step-00000006/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["model.safetensors"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="other weights than when this run was made"):
        notes_on(cfg, resolved)


def test_a_damaged_file_is_refused_when_it_is_loaded(begin, copied, resolved):
    cfg = resolved(begin("damaged", f"init={copied}"))
    path = copied / "checkpoints/step-00000006/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        initial_weights.load(cfg, build_outline(cfg).model, should_verify=True)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("nothing", "there is no such folder"),
        ("run/checkpoints/step-00000005", "the run has no such checkpoint. init=.*run takes its best"),
        ("begun", "the run has no complete checkpoint"),
        ("published", r"published layout.* Give model.checkpoint=.*published model.weights=pretrained"),
        ("empty", "no run in"),
    ],
)
def test_init_that_holds_no_weights_is_refused(init, message, begin, uninterrupted, tmp_path):
    for name in ("empty", "begun", "published", "run/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("begun", "run"):
        shutil.copy(uninterrupted / "config.yaml", tmp_path / name)
    (tmp_path / "published/config.json").write_text("{}")
    with pytest.raises(InputError, match=message):
        begin("new", f"init={tmp_path / init}")
