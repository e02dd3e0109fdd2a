"""A synthetic sweep: run folders as runs write them, with rising curves, and without any training."""

import functools
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity

CONF = Path(__file__).parents[1] / "conf"
STEPS = 120
RATE, GIOU = "optimizer.groups.vision.lr", "loss.weights.giou"


@functools.cache
def compose_config(*groups: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(groups))
    OmegaConf.set_struct(cfg, False)  # tests add keys
    return cfg


def add_run(outputs: Path, overrides: Sequence[str], ap50: float, last_step: int = STEPS, sweep: str = "made") -> Path:
    """Write a run with the config that `overrides` compose, whose AP50 tends to `ap50`; return its folder."""
    groups = [override for override in overrides if (CONF / override.partition("=")[0]).is_dir()]
    keys = [override for override in overrides if override not in groups]
    values = OmegaConf.from_dotlist([f"steps={STEPS}", "eval_every=20", f"sweep={sweep}", f"outputs={outputs}", *keys])
    cfg = OmegaConf.merge(compose_config(*groups), values)
    cfg.run = identity.run_identity(cfg)
    run_folder.create(cfg.folder, cfg)
    folder = Path(cfg.folder)
    write_rows(folder, curve(ap50, cfg.seed, last_step))
    return folder


def curve(ap50: float, seed: int, last_step: int) -> list[dict]:
    """Return the rows of metrics.jsonl up to `last_step`."""
    noise = np.random.default_rng(seed)
    rows = []
    for step in range(0, last_step + 1):
        progress = 1 - math.exp(-step / 30)
        if step:
            loss = 6 - 4 * progress - ap50 + 0.2 * noise.normal()
            rows.append({"step": step, "loss/total": loss, "lr/vision": 1e-6, "time/step_seconds": 0.5})
        if step % 20 == 0:
            value = max(0.0, ap50 * progress / (1 - math.exp(-STEPS / 30)) + 0.004 * noise.normal() * (step < STEPS))
            rows.append({"step": step, "eval/loss/total": 6 - 4 * progress - ap50, "eval/ap50": value})
    return rows


def write_rows(folder: Path, rows: Sequence[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def record(folder: Path, command: Sequence[str] = (), choices: dict[str, str] | None = None) -> None:
    """Write environment.json as the command line writes it."""
    path = folder / run_folder.ENVIRONMENT
    environment = json.loads(path.read_text(encoding="utf-8"))
    environment |= {"command": list(command), "choices": choices or {}, "git_commit": "ddf9182"}
    path.write_text(json.dumps(environment), encoding="utf-8")


def fail(folder: Path, step: int, error: str) -> None:
    """Write the log of a run that failed after `step`."""
    (folder / "train.log").write_text(
        f"2025-01-31 12:00:00 INFO bbu_train.train: {folder}: from step 0 to {STEPS}\n"
        f"2025-01-31 12:01:00 DEBUG bbu_train.train: stopped at step {step}\n"
        f'Traceback (most recent call last):\n  File "train.py", line 1, in train\n    step()\n{error}\n',
        encoding="utf-8",
    )


def grid(outputs: Path) -> None:
    """Write a sweep of two keys with three values each, and three seeds. One run has failed, one is unfinished."""
    axes = f"{RATE}=1e-6,1e-5,1e-4", f"{GIOU}=1,2,5"
    command = ["bbu_train/__main__.py", "-m", *axes, "seed=17,18,19", f"steps={STEPS}", "eval_every=20"]
    for rate, giou, seed in itertools.product((1e-6, 1e-5, 1e-4), (1, 2, 5), (17, 18, 19)):
        noise = np.random.default_rng([seed, int(1e7 * rate), giou]).normal()
        ap50 = 0.45 - 0.08 * abs(math.log10(rate) + 5) + 0.02 * (giou == 2) + 0.05 * (giou == 5) + 0.01 * noise
        is_unfinished = (rate, giou, seed) == (1e-6, 2, 19)
        has_failed = (rate, giou, seed) == (1e-4, 5, 18)
        overrides = [f"{RATE}={rate}", f"{GIOU}={giou}", f"seed={seed}"]
        folder = add_run(outputs, overrides, ap50, last_step=70 if is_unfinished else 43 if has_failed else STEPS)
        record(folder, command, {"model": "tiny", "collator": "packed"})
        if has_failed:
            fail(folder, 43, "bbu_train.errors.InputError: the loss is not finite")
