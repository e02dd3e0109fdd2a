"""`python -m bbu_train.export`: what it writes and says, and what it refuses."""

import json
import resource
import shutil
import signal
from contextlib import contextmanager
from functools import partial

import pytest
import safetensors.torch
import torch
from forked import start_program
from killed import kill_at_call
from made_runs import SMALL, make_run
from whole_runs import logged, run_here

from bbu_train.export.__main__ import main


@pytest.fixture(scope="module")
def made(config, resolved_config, tmp_path_factory):
    """A function from overrides to the folder of a run that was made, not trained."""
    outputs = tmp_path_factory.mktemp("outputs")

    def make(name, *choices):
        words = [*SMALL, *choices, f"outputs={outputs}", f"run={name}"]
        return make_run(config(*words), resolved_config(*words))

    return make


@pytest.fixture(scope="module")
def small(made):
    return made("small")


def export(capsys, *words):
    """Return the exit code, and what the program wrote to stdout and stderr."""
    code = main(words)
    return code, *capsys.readouterr()


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


PUBLISHED = {
    *("model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}
HEAD = {f"head/{name}" for name in ("model.safetensors", "export.json", "run.yaml", "environment.json", "README.md")}


def test_bf16_weights_are_written_as_they_are_and_others_rounded_with_the_cost_said(made, tmp_path, capsys):
    run = made("bf16", "engine.precision=bf16")
    code, said, _ = export(capsys, f"run={run}", f"to={tmp_path}/to")
    assert code == 0
    assert names(tmp_path / "to") == PUBLISHED | HEAD
    saved = safetensors.torch.load_file(run / "checkpoints/step-00000001/model.safetensors")
    written = safetensors.torch.load_file(tmp_path / "to/model.safetensors")
    saved_head = {name: each for name, each in saved.items() if name.startswith("head.")}
    head = safetensors.torch.load_file(tmp_path / "to/head/model.safetensors")
    assert head.keys() == saved_head.keys()
    assert all(torch.equal(head[name], each) and head[name].dtype == each.dtype for name, each in saved_head.items())
    squares = {"vision": [0.0, 0.0], "merger": [0.0, 0.0], "llm": [0.0, 0.0]}
    for name, each in saved.items():
        if name.startswith("head."):
            continue
        stock = name.removeprefix("backbone.model.").removeprefix("language_model.")
        stock = stock if stock.startswith("visual.") else f"model.{stock}"
        assert torch.equal(written[stock], each.bfloat16())
        part = "merger" if "visual.merger" in stock else "vision" if "visual" in stock else "llm"
        squares[part][0] += float((each.bfloat16().double() - each.double()).square().sum())
        squares[part][1] += float(each.double().square().sum())
    for part, (lost, whole) in squares.items():
        assert f"{(lost / whole) ** 0.5:.1e} ({part})" in said
    assert json.loads((tmp_path / "to/config.json").read_text())["dtype"] == "bfloat16"


def test_the_card_says_what_was_asked_what_it_scored_and_with_which_weights_of_losses(made, tmp_path, capsys):
    assert export(capsys, f"run={made('second', 'init=/runs/first')}", f"to={tmp_path}/to", "dtype=fp32")[0] == 0
    card = (tmp_path / "to/head/README.md").read_text()
    for part in (
        *("List every object in this picture", "| eval/ap50 | 0.25 |", "| loss.weights.giou | 2.0 |"),
        "| weights before training | /runs/first |",
        *('bbu_train.load("<folder>")', "step 1 of the run second", "from 3136 to 37632 pixels"),
    ):
        assert " ".join(part.split()) in " ".join(card.split())
    assert "${" not in card  # of weights that follow the model, their values


def test_another_folder_is_replaced_only_if_asked_and_only_if_it_is_an_export(small, tmp_path, capsys):
    words = f"run={small}", f"to={tmp_path}/to"
    assert export(capsys, *words)[0] == 0
    (tmp_path / "to/left").touch()
    code, _, error = export(capsys, *words)
    assert (code, "is not empty. Give a new folder, or overwrite=true" in error) == (2, True)
    assert export(capsys, *words, "overwrite=true")[0] == 0
    assert names(tmp_path / "to") == PUBLISHED | HEAD
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    code, _, error = export(capsys, f"run={small}", f"to={tmp_path}/mine", "overwrite=true")
    assert (code, "replaces only an exported model" in error) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} == {"to", "mine"}


@pytest.mark.parametrize("at", ["save_pretrained", "flush", "_exchange"])
def test_a_killed_export_leaves_no_folder_of_its_name_and_the_old_one_if_there_was_one(small, tmp_path, capsys, at):
    words = ["bbu_train.export", f"run={small}", f"to={tmp_path}/to", "overwrite=true"]
    if at == "_exchange":
        assert export(capsys, *words[1:], "dtype=fp32")[0] == 0
    in_class = at == "save_pretrained"
    owner = "transformers.Qwen2_5_VLForConditionalGeneration" if in_class else "bbu_train.runtime.atomic_folder"
    process = start_program(words, tmp_path / "said", before=partial(kill_at_call, owner, at, 1))
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "said").read_text()
    if at == "_exchange":
        assert json.loads((tmp_path / "to/config.json").read_text())["dtype"] == "float32"
    else:
        assert not (tmp_path / "to").exists()


@contextmanager
def files_of_at_most(num_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def complete(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete") / "to"
    assert main([f"run={small}", f"to={folder}"]) == 0
    return folder


@pytest.mark.parametrize("name", ["head/run.yaml", "tokenizer.json", "head/model.safetensors", "model.safetensors"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(small, complete, tmp_path, capsys, name):
    """Files may be as large as all but one byte of the file `name`."""
    with files_of_at_most((complete / name).stat().st_size - 1):
        code = main([f"run={small}", f"to={tmp_path}/to"])
    error = capsys.readouterr().err
    assert (code, f"could not be written to {tmp_path}/to: " in error) == (2, True)
    assert list(tmp_path.iterdir()) == []


def edit(old, new):
    def change(folder):
        path = folder / "config.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def cut(folder):
    weights = folder / "checkpoints/step-00000001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "checkpoints"), [], "There is no checkpoint in"),
        (cut, [], "step 1 is damaged: "),
        (
            edit("num_queries: 12", "num_queries: 13"),
            [],
            "head.query.weight has the shape (12, 32) in the",
        ),
        (
            edit("intermediate_size: 176", "intermediate_size: 177"),
            [],
            "backbone.model.visual.blocks.0.mlp",
        ),
        (
            edit("checkpoint: null\n  weights: random", "checkpoint: /gone\n  weights: pretrained"),
            [],
            "weights of /gone, which",
        ),
        (None, ["checkpoint=9"], "Steps saved there: 1"),
        (None, ["checkpoint=newest"], "checkpoint is best, last or a step"),
        (None, ["dtype=fp16"], "dtype is bf16 or fp32"),
        (None, ["form=vllm"], "form is servable or bbu_train"),
        (None, ["form=bbu_train"], "stock transformers cannot compute, and that of the run in"),
        (None, ["out=x"], "Did you mean to?"),
        (None, [f"to={__file__}"], "is not a folder"),
        (None, ["run=nowhere"], "There is no run in"),
    ],
)
def test_what_cannot_be_exported_is_refused(small, tmp_path, capsys, damage, words, message):
    folder = shutil.copytree(small, tmp_path / "moved")
    if damage:
        damage(folder)
    given = {"run": f"run={folder}", "to": f"to={tmp_path}/to"} | {word.partition("=")[0]: word for word in words}
    code, _, error = export(capsys, *given.values())
    assert code == 2
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_training_goes_on_from_an_export_with_the_loss_that_the_run_had(uninterrupted, tmp_path, capsys):
    assert export(capsys, f"run={uninterrupted}", f"to={tmp_path}/to", "dtype=fp32", "checkpoint=last")[0] == 0
    words = ["model.weights=pretrained", f"model.checkpoint={tmp_path}/to", "head=none", "loss=language"]
    next_run = run_here(tmp_path, "next", *words, "steps=1", "schedule.num_warmup_steps=0")
    before, after = logged(uninterrupted, "eval/loss/student_lm"), logged(next_run, "eval/loss/student_lm")
    assert after[0] == pytest.approx(before[-1], rel=1e-6)
    assert after[0] != before[0]
    assert export(capsys, f"run={next_run}", f"to={tmp_path}/again", "dtype=fp32", "checkpoint=last")[0] == 0
    assert names(tmp_path / "again") == PUBLISHED | HEAD - {"head/model.safetensors"}
    for name in sorted(PUBLISHED - {"model.safetensors", "tokenizer_config.json"}):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "to" / name).read_text(), name
    assert f"base_model: {tmp_path}/to" in (tmp_path / "again/head/README.md").read_text()
