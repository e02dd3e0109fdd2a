"""The training loop of bbu_train compared with a bare loop: the same steps of the tiny model, in turns.

Not a program of its own: `python benchmarks/host.py parts=loop` runs it.
"""

import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import timing
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train import train
from bbu_train.training import loader, planning

CONF = Path(__file__).parents[1] / "conf"
OVERRIDES = (
    *("schedule=constant", "schedule.num_warmup_steps=0", "eval_every=null", "save_every=null", "sweep=host"),
    *("head=detr", "loss=joint", "data=synthetic"),
    *("threads=1", "sampler.num_samples=2"),  # one core and short steps, so that the overhead of the loop weighs more
)
NUM_WARMUP_STEPS, NUM_CHECKED_STEPS = 5, 10


class BareLoop:
    """A tracker that the program's loop calls last. At each step it repeats the step in a bare loop.

    The bare loop has its own optimizer, its own model with the same initial weights, and its own loader of the same
    batches, which reads pictures in this process as the program's loader does.
    """

    def __init__(self, folder: str, overrides: list[str]):
        self.path = Path(folder) / "bare.json"
        self.cfg = compose_config(overrides)
        self.program_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.losses: list[float] = []

    def open(self, config: dict[str, Any], step: int) -> None:
        build, cfg = train.build, self.cfg
        preprocessing = build(cfg.model.preprocessing)
        builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
        collator = build(cfg.collator)(preprocessing.picture_format)
        source, _ = loader.sources(build(cfg.data), build(cfg.augmentation), builder, preprocessing.cost, collator)
        plan = planning.StepPlan(build(cfg.sampler), source, cfg.steps).starting_at(0)
        torch.manual_seed(cfg.seed)
        self.model = build(cfg.model.network)(device=torch.device("cpu"), head=build(cfg.head))
        self.criterion = build(cfg.loss)
        self.optimizer = build(cfg.optimizer)(self.model)
        self.batches = loader.batches(source, collator, plan, 1, 0, 1, num_workers=0)
        self.start = time.process_time()

    def step(self) -> float:
        """Train one step and return its loss."""
        (batch,) = next(self.batches)
        loss = self.criterion.objective(self.criterion(self.model(batch), batch), batch.counts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.engine.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = time.process_time()
        self.program_seconds.append(now - self.start)
        self.losses.append(self.step())
        self.start = time.process_time()
        self.bare_seconds.append(self.start - now)

    def sync(self) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def close(self, state: str) -> None:
        seconds = {"program": self.program_seconds, "bare loop": self.bare_seconds}
        self.path.write_text(json.dumps({"seconds": seconds, "losses": self.losses}))


def compose_config(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*OVERRIDES, *overrides])


def measure(outputs: str, tracker: str, num_steps: int) -> dict[str, object]:
    """Compare the processor time of a step in both loops, with this tracker."""
    overrides = [f"tracker={tracker}", f"outputs={outputs}", f"run={tracker}-{time.time_ns()}", f"steps={num_steps}"]
    cfg = compose_config(overrides)
    bare = {"_target_": "host_loop.BareLoop", "folder": cfg.folder, "overrides": overrides}
    with open_dict(cfg):
        cfg.tracker = {**OmegaConf.to_container(cfg.tracker, resolve=True), "bare": bare}
    with redirect_stdout(sys.stderr):  # keeps the table of the run out of this benchmark's table
        train.train(cfg)
    result = json.loads((Path(cfg.folder) / "bare.json").read_text())
    rows = [json.loads(line) for line in (Path(cfg.folder) / "metrics.jsonl").read_text().splitlines()]
    # The loops round differently when they clip gradients, and the difference grows; the first steps must agree.
    bare_losses = result["losses"][:NUM_CHECKED_STEPS]
    program_losses = [row["loss/total"] for row in rows[:NUM_CHECKED_STEPS]]
    torch.testing.assert_close(bare_losses, program_losses, rtol=1e-3, atol=0)
    seconds = {name: values[NUM_WARMUP_STEPS:] for name, values in result["seconds"].items()}
    return timing.compare(f"step of the loop, tracker={tracker}", seconds, "program", "bare loop")
