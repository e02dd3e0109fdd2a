"""What saving costs a training run: the longest step while a checkpoint is saved, against the median step.

    python benchmarks/saving.py [shape=3b] [saves=2] [steps_between=12] [key=value of bbu_train ...]

Trains on the standard workload (workload.py) by bbu_train's own loop, and saves in the background `saves` times. The
peer is a blocking save in the same run. Shapes:

3b       3B with random weights and everything trained: weights, float32 masters and moments
3b_15gb  the same with the language model frozen, so that a checkpoint has at most 15 GB
tiny     the tiny model, for a check on the CPU

A step lasts from one log row to the next. Those of a save are all steps until its commit. Each checkpoint is deleted
once it is committed, so the disk needs room for one. Prints a table and writes outputs/benchmarks/saving.json.
"""

import json
import os
import resource
import shutil
import signal
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# As in bbu_train/runtime/environment.py. torch reads these when it is imported.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import throughput
import workload
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bbu_train import train
from bbu_train.checkpoint import background
from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.errors import Preempted
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.runtime import host_memory, preemption
from bbu_train.training.progress import Progress, Saver

DEFAULTS = {"shape": "3b", "saves": 2, "steps_between": 12}
SHAPES = {
    "3b": throughput.PLAIN,
    "3b_15gb": (*throughput.PLAIN, "optimizer.groups.llm.lr=0"),
    "tiny": ("tracker=jsonl", "eval_every=null", "schedule.num_warmup_steps=1", "sampler.num_samples=1", "threads=1"),
}
NUM_WARMUP_STEPS = 24  # until most lengths are compiled


@dataclass
class Save:
    """A checkpoint: how it was saved, and the seconds of each step until its commit."""

    kind: str
    step: int
    began: float
    step_seconds: list[float] = field(default_factory=list)
    num_bytes: int = 0
    commit_seconds: float = 0.0


class TimedSaver(Saver):
    """Takes the place of the run's Saver, and is asked to save after every step: it decides when to, and how."""

    options: DictConfig
    results: dict[str, Any]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kinds = ["in the background"] * self.options.saves + ["at once"]
        self.countdown = NUM_WARMUP_STEPS
        self.current: Save | None = None
        self.saves: list[Save] = []
        self.undisturbed: list[float] = []
        self.available = [host_memory.available_bytes(Path("/"), os.environ)]
        self.last = time.perf_counter()

    def save(self, progress: Progress) -> None:
        seconds = time.perf_counter() - self.last
        self.available.append(host_memory.available_bytes(Path("/"), os.environ))
        if self.current is not None:
            self.current.step_seconds.append(seconds)
            self.note_commit(self.current)
        else:
            self.countdown -= 1
            if self.saves or self.countdown < self.options.steps_between:
                self.undisturbed.append(seconds)
        self.last = time.perf_counter()
        if self.current is None and self.countdown <= 0:
            if len(self.saves) == len(self.kinds):
                type(self).results = self.summary()
                os.kill(os.getpid(), signal.SIGTERM)  # ends the run
            else:
                self.begin(self.kinds[len(self.saves)], progress)
        progress.saved_at = progress.step  # the end of the run is not to save again

    def begin(self, kind: str, progress: Progress) -> None:
        assert self.background is not None, "there is one rank"
        self.current = Save(kind, progress.step, time.perf_counter())
        if kind == "at once":
            state = self._state() | {"metrics": {}, "evaluated_at": None}
            self.background.checkpoints.save(progress.step, self.average.weights(), state, {})
        else:
            super().save(progress)

    def note_commit(self, save: Save) -> None:
        assert self.background is not None, "there is one rank"
        latest = self.background.checkpoints.latest()
        if latest is not None:
            save.commit_seconds = time.perf_counter() - save.began
            save.num_bytes = sum(path.stat().st_size for path in latest.folder.iterdir())
            self.background.finish()  # what it deletes after the commit is deleted
            shutil.rmtree(latest.folder)
            self.saves.append(save)
            self.current, self.countdown = None, self.options.steps_between
            print(f"{save.kind}: {[round(seconds, 3) for seconds in save.step_seconds]}", flush=True)

    def summary(self) -> dict[str, Any]:
        median = statistics.median(self.undisturbed)
        used = (self.available[0] - min(self.available)) / 1e9
        return {"median_seconds": median, "host_gb": used, "saves": [asdict(save) for save in self.saves]}


def compose_config(shape: str, overrides: list[str]) -> DictConfig:
    tokenizer = PlainTextTokenizer(tiny_tokenizer(151936))
    folder = throughput.OUTPUTS / "workload"
    if not (folder / "validation.jsonl").exists():
        workload.write(folder, tokenizer, num_samples=128)
    names = [f"outputs={throughput.OUTPUTS}", "sweep=saving", f"run={time.time_ns()}", "steps=100000", "save_every=1"]
    with initialize_config_dir(str(throughput.ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*workload.overrides(folder, tokenizer), *SHAPES[shape], *names, *overrides])


def table(results: dict[str, Any]) -> str:
    median = results["median_seconds"]
    lines = [f"median step without a save: {median:.3f} s; peak use of host memory: {results['host_gb']:.1f} GB", ""]
    heads = ["save", "GB", "longest step s", "in medians", "seconds lost", "seconds until commit"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for save in results["saves"]:
        longest, steps = max(save["step_seconds"]), save["step_seconds"]
        cells = [save["kind"], f"{save['num_bytes'] / 1e9:.1f}", f"{longest:.3f}", f"{longest / median:.2f}"]
        cells += [f"{sum(steps) - median * len(steps):.2f}", f"{save['commit_seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    own_words = [word for word in sys.argv[1:] if word.split("=")[0] in DEFAULTS]
    overrides = [word for word in sys.argv[1:] if word not in own_words]
    options = OmegaConf.merge(DEFAULTS, OmegaConf.from_cli(own_words))
    preemption.install()
    background.MIN_BACKGROUND_BYTES = 0  # the tiny model's checkpoints too
    TimedSaver.options = options
    train.Saver = TimedSaver
    try:
        train.train(compose_config(options.shape, overrides))
    except Preempted:
        results = TimedSaver.results
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(table(results), f"\npeak resident memory of the training process, with the copy: {peak:.1f} GB", sep="\n")
    content = {"options": OmegaConf.to_container(options), "overrides": overrides, "peak_resident_gb": peak} | results
    (throughput.OUTPUTS / "saving.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
