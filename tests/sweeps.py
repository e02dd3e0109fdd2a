"""A synthetic sweep: run folders as a run writes them, with rising curves, without any training."""

import functools
import itertools
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity

CONF = Path(__file__).parents[1] / "conf"
NAME = "synthetic"
STEPS = 120
RATE, GIOU = "optimizer.groups.vision.lr", "loss.weights.giou"


@functools.cache
def composed(*groups: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(groups))
    OmegaConf.set_struct(cfg, False)  # a test may add keys
    return cfg


@functools.cache
def environment() -> str:
    """The environment.json of a run in this process, written once: it lists every installed package."""
    with tempfile.TemporaryDirectory() as folder:
        run_folder.create(folder, composed(), {})
        return (Path(folder) / run_folder.ENVIRONMENT).read_text(encoding="utf-8")


def add_run(outputs: Path, words: Sequence[str], ap50: float, last_step: int = STEPS, sweep: str = NAME) -> Path:
    """Write the run of the config that `words` compose. Its AP50 tends to `ap50`, its rows end at `last_step`."""
    groups = [word for word in words if (CONF / word.partition("=")[0]).is_dir()]
    overrides = [f"steps={STEPS}", "eval_every=20", f"sweep={sweep}", f"outputs={outputs}", *words]
    values = OmegaConf.from_dotlist([word for word in overrides if word not in groups])
    cfg = OmegaConf.merge(composed(*groups), values)
    cfg.run = identity.run_identity(cfg)
    folder = Path(cfg.folder)
    folder.mkdir(parents=True)
    (folder / run_folder.ENVIRONMENT).write_text(environment(), encoding="utf-8")
    (folder / run_folder.CONFIG).write_text(run_folder.as_yaml(cfg), encoding="utf-8")
    write_rows(folder, curve(ap50, cfg.seed, last_step))
    return folder


def curve(ap50: float, seed: int, last_step: int) -> list[dict[str, float]]:
    """The rows of a run whose losses fall and whose AP50 rises to `ap50` at STEPS."""
    generator = np.random.default_rng(seed)
    rows = []
    for step in range(0, last_step + 1):
        progress = 1 - math.exp(-step / 30)
        if step:
            loss = 6 - 4 * progress - ap50 + 0.2 * generator.normal()
            rows.append({"step": step, "loss/total": loss, "lr/vision": 1e-6, "time/step_seconds": 0.5})
        if step % 20 == 0:
            noise = 0.004 * generator.normal() * (step < STEPS)
            current = max(0.0, ap50 * progress / (1 - math.exp(-STEPS / 30)) + noise)
            rows.append({"step": step, "eval/loss/total": 6 - 4 * progress - ap50, "eval/ap50": current})
    return rows


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def record(folder: Path, command: Sequence[str] = (), choices: Mapping[str, str] | None = None) -> None:
    """Record the command line and the choices of config groups, as a run that was started by the program does."""
    path = folder / run_folder.ENVIRONMENT
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"command": list(command), "choices": choices or {}, "git_commit": "ddf9182"}
    path.write_text(json.dumps(content), encoding="utf-8")


def fail(folder: Path, step: int, error: str) -> None:
    """Write the train.log of a run that `error` ended."""
    (folder / "train.log").write_text(
        f"2025-01-31 12:00:00 INFO bbu_train.train: {folder}: from step 0 to {STEPS}\n"
        f"2025-01-31 12:01:00 DEBUG bbu_train.train: stopped at step {step}\n"
        f'Traceback (most recent call last):\n  File "train.py", line 1, in train\n    step()\n{error}\n',
        encoding="utf-8",
    )


def add_grid(outputs: Path) -> None:
    """Write a sweep of two keys with two values each and three seeds. One run has failed, one is unfinished."""
    rates, weights, seeds = (1e-6, 1e-5), (1, 5), (17, 18, 19)
    sweeps = f"{RATE}=1e-6,1e-5", f"{GIOU}=1,5", "seed=17,18,19"
    command = ["bbu_train/__main__.py", "-m", *sweeps, f"steps={STEPS}", "eval_every=20"]
    for rate, giou, seed in itertools.product(rates, weights, seeds):
        noise = 0.01 * np.random.default_rng([seed, int(1e7 * rate), giou]).normal()
        ap50 = 0.37 + 0.08 * (rate == 1e-5) + 0.05 * (giou == 5) + noise
        is_unfinished = (rate, giou, seed) == (1e-6, 1, 19)
        has_failed = (rate, giou, seed) == (1e-6, 5, 18)
        last_step = 70 if is_unfinished else 43 if has_failed else STEPS
        folder = add_run(outputs, [f"{RATE}={rate}", f"{GIOU}={giou}", f"seed={seed}"], ap50, last_step)
        record(folder, command, {"model": "tiny", "collator": "packed"})
        if has_failed:
            fail(folder, 43, "bbu_train.errors.InputError: the loss is not finite")
