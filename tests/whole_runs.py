"""What tests of whole runs share: the overrides of a run of seconds, its command, and what it left."""

import json
from pathlib import Path

import safetensors.torch
import torch
from hydra import compose, initialize_config_dir

CONF = Path(__file__).parents[1] / "conf"
SMOKE = ["experiment=smoke", "tracker=jsonl", "threads=1"]
SMALL_DATA = ["data.num_train=24", "data.num_validation=4", "data.width=112", "data.height=84"]
SMALL_DATA += ["eval_every=3", "gallery=1"]
# Smaller than the features of all teacher pictures, so that some are evicted.
CACHE = ["optimizer.groups.vision.lr=0", "model.teacher_cache_gib=0.0001"]
OTHER_CHOICES = [
    *("head=none", "loss=language", "sampler=token_budget", "sampler.max_row_tokens=1024"),
    *("optimizer=adamw_uniform", "schedule=constant", "schedule.num_warmup_steps=0", "collator=standard"),
    *("conversation=chinese", "data.language=chinese", "data.teachers.num_validation_teachers=2"),
]
"""Of the run "others", which has no head."""
GALLERIES = [f"step-0000000{step}.jpg" for step in (0, 3, 6)]
SMALL_HEAD = ["head.num_queries=20", "head.d_model=64", "head.num_caption_layers=1", "head.max_caption_tokens=12"]


def settings(outputs, name, overrides):
    """A smoke run on little data with a small head, unless the overrides choose another."""
    small = [] if "head=none" in overrides else SMALL_HEAD
    few = [] if "sampler=token_budget" in overrides else ["sampler.num_samples=4"]
    return [*SMOKE, *SMALL_DATA, *small, *few, f"run={name}", f"outputs={outputs}", *overrides]


def command(outputs, name, *overrides):
    """Return the arguments of `python -m` that start the run in a process of its own."""
    return ["bbu_train", *settings(outputs, name, overrides)]


def run_here(outputs, name, *overrides):
    """The folder of a run in this process."""
    from bbu_train.train import train  # not before a test's hooks are in place

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=["sweep=smoke", *settings(outputs, name, overrides)])
    train(cfg)
    return outputs / "smoke" / name


def draw_nothing(*arguments):
    """Take the place of `final_report.write_plots`, which takes as long as two steps."""
    return []


def leave_out_plots():
    """Let the runs of this process draw no plots at their end."""
    from bbu_train.reporting import final_report

    final_report.write_plots = draw_nothing


def rows(folder):
    """What the run logged, but for times and memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(("time/", "memory/"))}
        for line in lines
    ]


def logged(folder, name):
    """Return the values of one metric, step by step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in lines if name in row]


def weights(folder, step=6):
    return safetensors.torch.load_file(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def trained(folder, step=6):
    """Return the weights that the optimizer updates; model.safetensors may hold their average instead."""
    return torch.load(folder / "checkpoints" / f"step-{step:08d}" / "state.pt", weights_only=True)["trained"]


def assert_equal_runs(one, other, step=6):
    assert rows(one) == rows(other)
    for kind in (weights, trained):
        first, second = kind(one, step), kind(other, step)
        assert all(torch.equal(first[name], second[name]) for name in first | second)
