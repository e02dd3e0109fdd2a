"""A made sweep: run folders as a run writes them, with curves that rise, without any training."""

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
def composed(*groups: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(groups))
    OmegaConf.set_struct(cfg, False)  # a test may add keys
    return cfg


def add_run(outputs: Path, words: Sequence[str], ap50: float, last_step: int = STEPS, sweep: str = "made") -> Path:
    """A run of the config that `words` compose, which tends to `ap50` and was written to `last_step`."""
    groups = [word for word in words if (CONF / word.partition("=")[0]).is_dir()]
    given = [f"steps={STEPS}", "eval_every=20", f"sweep={sweep}", f"outputs={outputs}", *words]
    values = OmegaConf.from_dotlist([word for word in given if word not in groups])
    cfg = OmegaConf.merge(composed(*groups), values)
    cfg.run = identity.run_identity(cfg)
    run_folder.create(cfg.folder, cfg)
    folder = Path(cfg.folder)
    write_rows(folder, curve(ap50, cfg.seed, last_step))
    return folder


def curve(ap50: float, seed: int, last_step: int) -> list[dict]:
    noise = np.random.default_rng(seed)
    rows = []
    for step in range(0, last_step + 1):
        grown = 1 - math.exp(-step / 30)
        if step:
            loss = 6 - 4 * grown - ap50 + 0.2 * noise.normal()
            rows.append({"step": step, "loss/total": loss, "lr/vision": 1e-6, "time/step_seconds": 0.5})
        if step % 20 == 0:
            found = max(0.0, ap50 * grown / (1 - math.exp(-STEPS / 30)) + 0.004 * noise.normal() * (step < STEPS))
            rows.append({"step": step, "eval/loss/total": 6 - 4 * grown - ap50, "eval/ap50": found})
    return rows


def write_rows(folder: Path, rows: Sequence[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def record(folder: Path, command: Sequence[str] = (), choices: dict[str, str] | None = None) -> None:
    """What the command line would have written beside the config."""
    path = folder / run_folder.ENVIRONMENT
    environment = json.loads(path.read_text(encoding="utf-8"))
    environment |= {"command": list(command), "choices": choices or {}, "git_commit": "ddf9182"}
    path.write_text(json.dumps(environment), encoding="utf-8")


def fail(folder: Path, step: int, error: str) -> None:
    (folder / "train.log").write_text(
        f"2025-01-31 12:00:00 INFO bbu_train.train: {folder}: from step 0 to {STEPS}\n"
        f"2025-01-31 12:01:00 DEBUG bbu_train.train: stopped at step {step}\n"
        f'Traceback (most recent call last):\n  File "train.py", line 1, in train\n    step()\n{error}\n',
        encoding="utf-8",
    )


def grid(outputs: Path) -> None:
    """Two keys of three values with three seeds; one run failed, one is unfinished."""
    spellings = f"{RATE}=1e-6,1e-5,1e-4", f"{GIOU}=1,2,5"
    command = ["bbu_train/__main__.py", "-m", *spellings, "seed=17,18,19", f"steps={STEPS}", "eval_every=20"]
    for rate, giou, seed in itertools.product((1e-6, 1e-5, 1e-4), (1, 2, 5), (17, 18, 19)):
        chance = np.random.default_rng([seed, int(1e7 * rate), giou]).normal()
        ap50 = 0.45 - 0.08 * abs(math.log10(rate) + 5) + 0.02 * (giou == 2) + 0.05 * (giou == 5) + 0.01 * chance
        late = (rate, giou, seed) == (1e-6, 2, 19)
        broken = (rate, giou, seed) == (1e-4, 5, 18)
        words = [f"{RATE}={rate}", f"{GIOU}={giou}", f"seed={seed}"]
        folder = add_run(outputs, words, ap50, last_step=70 if late else 43 if broken else STEPS)
        record(folder, command, {"model": "tiny", "collator": "packed"})
        if broken:
            fail(folder, 43, "bbu_train.errors.InputError: the loss is not finite")
