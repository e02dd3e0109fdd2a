"""What the program's loop costs beside a bare one: the same steps of the tiny model, turn and turn about."""

import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import beside
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from bbu_train import train
from bbu_train.training import loader, planning

CONF = Path(__file__).parents[1] / "conf"
OVERRIDES = (
    *("schedule=constant", "schedule.num_warmup_steps=0", "eval_every=null", "save_every=null", "sweep=host"),
    *("threads=1", "sampler.num_samples=2"),  # one core, and short steps: what the loop adds weighs more
)
NUM_WARM, NUM_CHECKED = 5, 10


class BareLoop:
    """A tracker that the program's loop calls last: at each step it does the same step with a loop of its own.

    That has its own model, with the same weights at first, its own optimizer, and the same batches from its own
    loader, which like the program's reads pictures in this process.
    """

    def __init__(self, folder: str, overrides: list[str]):
        self.path = Path(folder) / "bare.json"
        self.cfg = configured(overrides)
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.losses: list[float] = []

    def open(self, config: dict, step: int) -> None:
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
        self.began = time.process_time()

    def step(self) -> float:
        (batch,) = next(self.batches)
        loss = self.criterion.objective(self.criterion(self.model(batch), batch), batch.counts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.engine.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = time.process_time()
        self.ours.append(now - self.began)
        self.losses.append(self.step())
        self.began = time.process_time()
        self.bare.append(self.began - now)

    def artifact(self, path: Path) -> None: ...

    def close(self, state: str) -> None:
        self.path.write_text(json.dumps({"ours": self.ours, "bare": self.bare, "losses": self.losses}))


def configured(overrides: list[str]):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*OVERRIDES, *overrides])


def measure(outputs: str, tracker: str, steps: int) -> dict[str, object]:
    """A step of both loops by the processor's time, which other programs do not lengthen, with this tracker."""
    overrides = [f"tracker={tracker}", f"outputs={outputs}", f"run={tracker}-{time.time_ns()}", f"steps={steps}"]
    cfg = configured(overrides)
    bare = {"_target_": "host_loop.BareLoop", "folder": cfg.folder, "overrides": overrides}
    with open_dict(cfg):
        cfg.tracker = {**OmegaConf.to_container(cfg.tracker, resolve=True), "bare": bare}
    with redirect_stdout(sys.stderr):  # where the run's own table is not in the way
        train.train(cfg)
    found = json.loads((Path(cfg.folder) / "bare.json").read_text())
    rows = [json.loads(line) for line in (Path(cfg.folder) / "metrics.jsonl").read_text().splitlines()]
    # The same work, until rounding, by which clipping differs, has grown.
    theirs, mine = found["losses"][:NUM_CHECKED], [row["loss/total"] for row in rows[:NUM_CHECKED]]
    torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=0)
    seconds = {name: found[name][NUM_WARM:] for name in ("ours", "bare")}
    return beside.row(f"step of the loop, tracker={tracker}", seconds, "ours", "bare")
