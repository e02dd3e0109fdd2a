"""Runs `python -m bbu_train` and takes the time of each part of its start. Not a program of its own.

    python startup_clock.py <time.monotonic() at the start> <result.json> <save|leave> [key=value of bbu_train ...]

`python benchmarks/startup.py` starts it. With STARTUP_PROFILE=<file> in the environment it also writes where Python
spent its time, which then takes longer. The run ends after its second step: with `save` by a signal, so that it saves
as a preempted run does, with `leave` without saving.
"""

import cProfile
import importlib.abc
import importlib.util
import json
import os
import pstats
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

NUM_STEPS, NUM_PROFILED = 2, 150
IMPORTS, SAVE, KEEP = "imports of training", "first save", "compiled graphs to their file"
TIMED = {  # parts of bbu_train.train, by the names of its functions; "a.b": function `b` of the module or class `a`
    "distributed.start": "device",
    "prepare": "data and plan",
    "step_metrics.peak_flops": "rate of a large product",
    "progress.restore": "restore",
    "first_samples.write": "page of the first samples",
    "fit.predict": "prediction of memory",
    "fit.try_out": "trial of the largest micro-batches",
    "evaluate": "evaluation at step 0",
    "Recovery.evaluate": "evaluation at step 0",
    "progress.save": SAVE,
}


class Clock:
    """Seconds of each part (`spans`), and what torch counted in it: graphs, cache hits, seconds of compilation."""

    def __init__(self, began: float, result: Path, saves: bool):
        self.result, self.saves = result, saves
        self.began = self.ended = began
        self.spans: dict[str, float] = {}
        self.counts: dict[str, dict[str, float]] = {}
        self.seen: Counter[str] = Counter()
        self.is_inside = False
        self.num_steps = 0
        self.total = 0.0

    def end(self, name: str, began: float) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.ended = time.monotonic()
        self.spans[name] = self.spans.get(name, 0) + self.ended - began
        if "torch._dynamo.utils" in sys.modules:
            now = torch_counters()
            counts = Counter(self.counts.get(name, {}))
            counts.update({key: value - self.seen[key] for key, value in now.items()})
            self.counts[name] = {key: value for key, value in counts.items() if value}
            self.seen = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **keywords: Any) -> Any:
            if self.is_inside:
                return function(*arguments, **keywords)
            self.is_inside, began = True, time.monotonic()
            try:
                return function(*arguments, **keywords)
            finally:
                self.is_inside = False
                self.end(name, began)

        return run

    def timed_build(self, build: Callable[..., Any]) -> Callable[..., Any]:
        """Time what a config builds by its package, such as "model", also where the config gives only a function."""

        def run(config: Any, *arguments: Any, **keywords: Any) -> Any:
            name = str(config.get("_target_", "bbu_train.tracker")).split(".")[1]
            built = self.timed(name, build)(config, *arguments, **keywords)
            return self.timed(name, built) if isinstance(built, partial) else built

        return run

    def timed_cache(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            cache = make(*arguments)
            cache.load = self.timed("compiled graphs from their file", cache.load)
            cache._save = self.timed(KEEP, cache._save)
            return cache

        return run

    def timed_step(self, log: Callable[..., None]) -> Callable[..., None]:
        """A step lasts from the end of the last part to its row in the log, for which the host waits for its losses."""

        def run(trackers: Any, step: int, row: dict[str, float]) -> None:
            log(trackers, step, row)
            if "time/step_seconds" not in row:
                return
            self.num_steps += 1
            self.end(f"step {self.num_steps}", self.ended)
            if self.num_steps == NUM_STEPS:
                self.total = self.ended - self.began
                if self.saves:
                    os.kill(os.getpid(), signal.SIGTERM)

        return run

    def leave_after_last(self, step_totals: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            if self.num_steps == NUM_STEPS and not self.saves:
                raise KeyboardInterrupt
            return step_totals(*arguments, **keywords)

        return run

    def watch(self, train: ModuleType) -> None:
        """Put the clock around the parts of bbu_train.train. A part that this version lacks is not timed."""
        for path, name in TIMED.items():
            *modules, function = path.split(".")
            owner = getattr(train, modules[0], None) if modules else train
            if hasattr(owner, function):
                setattr(owner, function, self.timed(name, getattr(owner, function)))
        if hasattr(train, "compile_cache"):
            train.compile_cache = self.timed_cache(train.compile_cache)
        train.build = self.timed_build(train.build)
        train.Trackers.open = self.timed("tracker", train.Trackers.open)
        train.Trackers.log = self.timed_step(train.Trackers.log)
        train.step_totals = self.leave_after_last(train.step_totals)

    def write(self) -> None:
        content = {"total": self.total, "spans": self.spans, "counts": self.counts}
        self.result.write_text(json.dumps(content, indent=1))


def torch_counters() -> Counter[str]:
    """Return what torch has counted so far: graphs, uses of its caches, seconds of each stage of compilation."""
    from torch._dynamo import utils

    sums = {f"{group} {name}": count for group, names in utils.counters.items() for name, count in names.items()}
    stages = {f"stage {name}": sum(seconds) for name, seconds in utils.compilation_time_metrics.items()}
    totals = {f"seconds {name}": seconds for name, seconds in utils.calculate_time_spent().items()}
    return Counter(sums | stages | totals)


class WatchImport(importlib.abc.MetaPathFinder):
    """Takes the time of importing bbu_train.train where the program does, and then puts the clock around its parts."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "bbu_train.train":
            return None
        sys.meta_path.remove(self)
        self.clock.end("python, command and config", self.clock.began)
        began = time.monotonic()
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_watch(module: ModuleType) -> None:
            load(module)
            self.clock.end(IMPORTS, began)
            self.clock.watch(module)

        spec.loader.exec_module = load_and_watch
        return spec


def profiled(run: Callable[[], object], path: Path) -> None:
    """Write the functions that took longest, first with what they called and then without."""
    profile = cProfile.Profile()
    try:
        profile.runcall(run)
    finally:
        with path.open("w") as file:
            stats = pstats.Stats(profile, stream=file)
            for order in ("cumulative", "tottime"):
                stats.sort_stats(order).print_stats(NUM_PROFILED)


def main() -> None:
    began, result, end, *words = sys.argv[1:]
    clock = Clock(float(began), Path(result), end == "save")
    sys.meta_path.insert(0, WatchImport(clock))
    sys.argv[1:] = words
    run = partial(runpy.run_module, "bbu_train", run_name="__main__", alter_sys=True)
    try:
        if path := os.environ.get("STARTUP_PROFILE"):
            profiled(run, Path(path))
        else:
            run()
    finally:
        if clock.num_steps == NUM_STEPS:
            clock.write()


if __name__ == "__main__":
    main()
