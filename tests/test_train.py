"""Whole runs: in every layout, compiled, on two ranks, with other choices, and what they leave behind."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from functools import partial

import pytest
import torch
from forked import run_program, start_program
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from whole_runs import CACHE, GALLERIES, OTHER_CHOICES, command, leave_out_plots, logged, rows, weights

from bbu_train.errors import InputError

THREE_SAMPLES = ["sampler.num_samples=3"]


def layout(run, *overrides):
    """Return the folder of a run that lays out the same steps in another way."""
    return run("-".join(overrides).replace("=", "-"), *overrides)


def test_a_profiled_run_leaves_a_trace_of_three_steps_and_the_same_log(run, uninterrupted):
    folder = run("profiled", "profile=true")
    with gzip.open(folder / "trace.json.gz") as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == 3
    assert "aten::mm" in names
    assert "trace.json.gz" in (folder / "train.log").read_text()
    assert rows(folder) == rows(uninterrupted)


def test_a_run_that_fails_before_its_first_step_closes_what_it_has_opened(run, monkeypatch):
    process = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in process.items():
        monkeypatch.setenv(name, str(value))
    closed = []
    monkeypatch.setattr("bbu_train.tracker.jsonl.Jsonl.close", lambda self, state: closed.append(state))
    monkeypatch.setattr("bbu_train.reporting.first_samples.write", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("fails", "head=none")
    assert closed == ["failed"]
    assert not torch.distributed.is_initialized()


def test_packing_efficiency_is_the_share_of_tokens_that_are_no_padding(run, uninterrupted):
    padded = layout(run, "collator=standard")
    assert logged(uninterrupted, "time/packing_efficiency") == [1.0] * 6
    assert all(0.3 < share < 1 for share in logged(padded, "time/packing_efficiency"))


def test_a_cache_for_teachers_changes_no_loss(run):
    frozen = run("frozen", *THREE_SAMPLES, "optimizer.groups.vision.lr=0")
    compare_logs(rows(run("one-rank-cached", *THREE_SAMPLES, *CACHE)), rows(frozen))


def test_a_cache_for_a_tower_that_is_trained_is_refused_before_the_first_step(run):
    with pytest.raises(InputError, match="needs a frozen vision tower"):
        run("refused", "model.teacher_cache_gib=1")


COMPILED = ["model.compile=true", "engine.gradient_checkpointing=selective", "eval_every=null", "save_every=null"]


def trace_only():
    """Let torch.compile run torch's operations in the traced graphs, instead of generating C++."""
    torch._logging.set_logs(recompiles=True)
    compile_ = torch.compile
    torch.compile = lambda function, **_: compile_(function, dynamic=True, backend="aot_eager_decomp_partition")


@pytest.mark.parametrize(
    ("before", "choices"),
    [
        (trace_only, ["head=none", "loss=language"]),
        pytest.param(partial(torch._logging.set_logs, recompiles=True), [], marks=pytest.mark.slow),
    ],
    ids=["traced", "compiled"],
)
def test_a_compiled_run_that_computes_activations_again_gives_the_same_log(outputs, run, before, choices, request):
    """In a process of its own, because the types that are checked here cannot be compiled.

    Each function is compiled once, except the forward pass of a block: once for each of two kinds. The fast test
    compiles only the language model, and only traces it.
    """
    name = request.node.callspec.id
    output = run_program(command(outputs, name, *COMPILED, *choices), outputs / f"{name}.txt", before=before)
    expected = [row for row in rows(run("uncompiled" if choices else "uninterrupted", *choices)) if "loss/total" in row]
    compare_logs(rows(outputs / "smoke" / name), expected)
    assert re.findall(r"Recompiling function (\w+)", output) == ["forward_with_checkpointing"]


@pytest.mark.parametrize("overrides", [["engine.num_micro_batches=4", "collator=standard"], ["collator=standard"]])
def test_another_layout_of_the_same_steps_gives_the_same_log(run, uninterrupted, overrides):
    compare_logs(rows(layout(run, *overrides)), rows(uninterrupted))


def compare_logs(actual, expected):
    """The first steps agree to rounding; AdamW's division by small second moments lets rounding grow afterwards."""
    for row, reference in zip(actual, expected, strict=True):
        tolerance = 1e-5 if row["step"] <= 1 else 2e-2
        for name, value in row.items():
            if not name.startswith(("eval/ap", "eval/agnostic", "eval/f1")):
                assert value == pytest.approx(reference[name], rel=tolerance, abs=tolerance), (row["step"], name)


def amounts(folder, rate):
    """Return seconds times rate for each logged step."""
    return [s * r for s, r in zip(logged(folder, "time/step_seconds"), logged(folder, rate), strict=True)]


def test_the_useful_work_of_a_step_is_that_of_its_samples_in_every_layout(run, uninterrupted):
    split = layout(run, "engine.num_micro_batches=4", "collator=standard")
    assert amounts(split, "time/model_tflops") == pytest.approx(amounts(uninterrupted, "time/model_tflops"))
    assert min(amounts(split, "time/model_tflops")) > 0


def test_a_run_on_a_cpu_has_no_rate_to_be_a_share_of(uninterrupted):
    assert logged(uninterrupted, "time/tokens_per_second")
    assert not logged(uninterrupted, "time/mfu") + logged(uninterrupted, "time/share_of_matmul")
    assert len(logged(uninterrupted, "memory/peak_gib")) == 6


def run_by_torchrun(arguments, folder):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *arguments], check=True, capture_output=True, env=environment)


def run_two_processes(arguments, folder):
    """Run both ranks in forked processes, which start faster."""
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank in ("0", "1"):
        rank_environment = {**environment, "RANK": rank, "LOCAL_RANK": rank}
        output = folder.with_name(f"{folder.name}-{rank}.txt")
        ranks.append(start_program(arguments, output, rank_environment, before=leave_out_plots))
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("launch", "cache"),
    [
        pytest.param(run_two_processes, [], id="plain"),
        pytest.param(run_two_processes, CACHE, id="cached"),
        pytest.param(run_by_torchrun, [], id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_take_the_same_steps_as_one(outputs, run, launch, cache, request):
    """Three samples in four parts: two ranks, two micro-batches each, one of them without a sample.

    That torchrun sets the variables of ranks is also tested in launchers/test_here.py, in a fifth of the time.
    """
    one_rank = run(f"one-rank-{request.node.callspec.id}", *THREE_SAMPLES, *cache)
    two_ranks = outputs / "smoke" / f"two-ranks-{request.node.callspec.id}"
    launch(command(outputs, two_ranks.name, *THREE_SAMPLES, "engine.num_micro_batches=2", *cache), two_ranks)
    compare_logs(rows(two_ranks), rows(one_rank))
    assert weights(two_ranks).keys() == weights(one_rank).keys()  # which export and predict read
    for rate in ("time/tokens_per_second", "time/model_tflops"):
        assert amounts(two_ranks, rate) == pytest.approx(amounts(one_rank, rate))
    by_rank = zip(*(logged(two_ranks, f"memory/rank{rank}/peak_gib") for rank in range(2)), strict=True)
    assert logged(two_ranks, "memory/peak_gib") == [max(its) for its in by_rank]


def test_a_run_leaves_its_config_its_log_and_pictures(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoints", "train.log", "samples.html", "train_samples.jpg"}
    assert names >= {"losses.png", "rates.png", "overlay.png"}
    assert [path.name for path in sorted((uninterrupted / "gallery").iterdir())] == GALLERIES


def test_a_run_says_what_it_read_in_its_log_and_whole_in_environment_json(uninterrupted):
    data = json.loads((uninterrupted / "environment.json").read_text())["data"]
    train, validation = data["splits"]["train"], data["splits"]["validation"]
    assert (train["num_pictures"], validation["num_pictures"]) == (24, 4)
    assert sum(train["num_objects_by_class"].values()) == train["num_objects"] > 0


def test_the_start_of_a_run_is_one_screen_in_its_log_and_whole_in_environment_json(uninterrupted):
    environment = json.loads((uninterrupted / "environment.json").read_text())
    screen = (uninterrupted / "train.log").read_text().split(" INFO bbu_train.training.first_screen: \n")[1]
    lines = screen.split("\n\n")[0].splitlines()
    assert len(lines) <= 40
    for heading, texts in environment["start"].items():
        assert any(line.startswith(f"{heading} ") for line in lines), heading
        assert all(texts)
    num_objects = environment["data"]["splits"]["train"]["num_objects"]
    assert f"train: 24 pictures with {num_objects:,} objects of " in screen
    assert f"resume={uninterrupted}" in screen
    weights = sum(int(number.replace(",", "")) for number in re.findall(r" ([\d,]+)  lr ", screen))
    assert f"all {weights:,} parameters are trained" in screen


LOSSES = ("total", "teacher_lm", "student_lm", "bbox_l1", "bbox_giou", "objectness", "caption")


def test_the_losses_of_every_component_are_logged(uninterrupted):
    names = set(rows(uninterrupted)[1])
    assert names >= {f"loss/{name}" for name in LOSSES}
    assert names >= {f"{kind}/{group}" for kind in ("lr", "grad_norm") for group in ("vision", "detection", "adapter")}


def test_the_other_choices_of_every_group_run_too(run):
    folder = run("others", *OTHER_CHOICES)
    first, *_, last = [row["loss/student_lm"] for row in rows(folder) if "loss/total" in row]
    assert last < first
    assert not (folder / "overlay.png").exists()


def test_a_checkpoint_in_a_folder_is_trained(run, tmp_path, config, make_model, preprocessing):
    """As a user would with downloaded weights: what transformers saved is what the run begins with."""
    backbone = make_model("head=none").backbone
    backbone.save_pretrained(tmp_path)
    preprocessing.tokenizer.save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil().save_pretrained(tmp_path)
    start = [f"model.checkpoint={tmp_path}", "model=qwen25vl3b", "head=none", "loss=language", "model.max_pixels=37632"]
    folder = run("pretrained", *start, "steps=1", "schedule.num_warmup_steps=0", "model.learning_rates.llm=0")
    saved, trained = dict(backbone.named_parameters()), weights(folder, step=1)
    frozen = "model.language_model.layers.0.self_attn.q_proj.weight"
    moved = "model.visual.blocks.0.attn.qkv.weight"
    assert torch.equal(trained[f"backbone.{frozen}"], saved[frozen])
    assert not torch.equal(trained[f"backbone.{moved}"], saved[moved])
    torch.testing.assert_close(trained[f"backbone.{moved}"], saved[moved], atol=1e-4, rtol=0)
