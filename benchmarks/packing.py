"""How full rows are and how long the plan of an epoch takes, beside next-fit and padding. Needs no GPU.

    python benchmarks/packing.py [samples=1000000] [window=512]

Lengths are those of the standard workload (workload.py). Ours is `sampler=token_budget`. Next-fit opens a row when the
next sample does not fit the last one; padded is `sampler=fixed_samples` with 8 samples, each as long as the longest.
Each plan is made in a process of its own; memory is what that process grew by. Prints a table and writes
outputs/benchmarks/packing.json.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import workload
from omegaconf import OmegaConf

from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.sampler.token_budget import TokenBudget
from bbu_train.seeds import generator
from bbu_train.types import Draw

SEED, NUM_ROWS, NUM_SAMPLES = 17, 2, 8
Lengths = list[int]


def lengths_of(num_samples: int) -> Lengths:
    random = generator("lengths of the standard workload")
    num_turns = random.choice([1, 2, 3], num_samples, p=[0.30, 0.35, 0.35])
    lengths = np.full(num_samples, workload.NUM_SYSTEM_TOKENS)
    for turn in range(3):
        num_objects = workload.num_objects(random, num_samples)
        num_image_tokens = workload.WIDTH // 28 * (workload.HEIGHT // 28)
        tokens = num_image_tokens + workload.NUM_QUESTION_TOKENS + workload.NUM_OBJECT_TOKENS * num_objects
        lengths += np.where(turn < num_turns, tokens, 0)
    return lengths.tolist()


def ours(lengths: Lengths, max_row_tokens: int, window: int) -> int:
    """Slots of all rows."""
    sampler = TokenBudget(max_row_tokens, NUM_ROWS, window, SEED)
    steps = sampler.epoch(0, range(len(lengths)), lambda draw: lengths[draw.index])
    return max_row_tokens * sum(map(len, steps))


def next_fit(lengths: Lengths, max_row_tokens: int, _: int) -> int:
    rows: list[list[Draw]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = max_row_tokens
        rows[-1].append(Draw(0, i))
        room -= length
    return max_row_tokens * len(rows)


def padded(lengths: Lengths, *_: int) -> int:
    steps = FixedSamples(NUM_SAMPLES, SEED).epoch(0, range(len(lengths)), lambda draw: lengths[draw.index])
    draws = ([draw for row in step for draw in row] for step in steps)
    return sum(len(its) * max(lengths[draw.index] for draw in its) for its in draws)


def measured(planner: Callable[..., int], num_samples: int, max_row_tokens: int, window: int) -> dict[str, float]:
    lengths = lengths_of(num_samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    slots = planner(lengths, max_row_tokens, window)
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20  # Linux counts KiB
    return {"useful": sum(lengths) / slots, "seconds": seconds, "memory_gib": grown}


def main() -> None:
    given = OmegaConf.merge({"samples": 1_000_000, "window": 512}, OmegaConf.from_cli(sys.argv[1:]))
    cases = [(ours, 16384), (next_fit, 16384), (ours, 8192), (next_fit, 8192), (padded, 0)]
    results = []
    for planner, max_row_tokens in cases:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found = process.submit(measured, planner, given.samples, max_row_tokens, given.window).result()
        results.append({"plan": planner.__name__, "row_tokens": max_row_tokens} | found)
    print(f"{given.samples:,} samples, windows of {given.window:,}\n")
    print("| plan | row tokens | slots useful | seconds | memory GiB |\n|---|---|---|---|---|")
    for r in results:
        row = f"{r['row_tokens']:,}" if r["row_tokens"] else "the longest"
        print(f"| {r['plan']} | {row} | {r['useful']:.2%} | {r['seconds']:.1f} | {r['memory_gib']:.2f} |")
    path = Path("outputs/benchmarks/packing.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": results} | OmegaConf.to_container(given)))


if __name__ == "__main__":
    main()
