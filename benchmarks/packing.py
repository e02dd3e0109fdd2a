"""Sampler plans compared: how full rows are, how long a plan takes, and how evenly it loads the ranks. Needs no GPU.

    python benchmarks/packing.py [samples=1000000] [window=512] [balanced_share=0.7]

Lengths are those of the standard workload (workload.py), costs those of the 3B shape (bbu_train/model/cost.py).

bbu_train  `sampler=token_budget`, with 8 rows per step for 8 ranks
best fit   the same without regard to cost: balanced_share=0, and rows are evened by tokens
next-fit   opens a new row when the next sample does not fit into the last one
padded     `sampler=fixed_samples` with 64 samples per step, each padded to the longest of its rank

Each plan is made in its own process; memory is the growth of that process. Steps are divided among ranks by tokens or
by cost. "Costliest rank / mean" is the cost of a step's costliest rank over the mean rank, averaged over steps: the
others wait for it. "Costliest step / mean" is the cost of the costliest step over the mean step. The last step of the
epoch, which is incomplete, does not count. Prints a table and writes outputs/benchmarks/packing.json.
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

from bbu_train.cli import arguments
from bbu_train.model import cost
from bbu_train.model.shape import configuration
from bbu_train.runtime.seeds import generator
from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.sampler.token_budget import TokenBudget
from bbu_train.training import planning
from bbu_train.types.samples import PlannedStep, SampleVisit

SEED, NUM_RANKS, NUM_SAMPLES = 17, 8, 64
SHAPE = Path(__file__).parents[1] / "conf" / "model" / "qwen25vl3b.yaml"
Values = list[int]  # a number for each sample


def lengths_and_costs(num_samples: int) -> tuple[Values, Values]:
    """Draw the tokens of each sample and compute its cost."""
    random = generator("lengths of the standard workload")
    num_turns = random.choice([1, 2, 3], num_samples, p=[0.30, 0.35, 0.35])
    num_patches = workload.WIDTH // 14 * (workload.HEIGHT // 14)
    lengths = np.full(num_samples, workload.NUM_SYSTEM_TOKENS)
    for turn in range(3):
        num_objects = workload.num_objects(random, num_samples)
        tokens = num_patches // 4 + workload.NUM_QUESTION_TOKENS + workload.NUM_OBJECT_TOKENS * num_objects
        lengths += np.where(turn < num_turns, tokens, 0)
    shape = OmegaConf.to_container(OmegaConf.load(SHAPE).shape)
    patches = [np.where(turn < num_turns, num_patches, 0) for turn in range(3)]
    costs = cost.from_config(configuration(None, "random", shape))(lengths, patches)
    return lengths.tolist(), costs.tolist()


def by_draw(values: Values) -> Callable[[SampleVisit], int]:
    return lambda draw: values[draw.index]


def plan_bbu_train(
    lengths: Values, costs: Values, max_row_tokens: int, window: int, balanced_share: float
) -> list[PlannedStep]:
    sampler = TokenBudget(max_row_tokens, NUM_RANKS, window, balanced_share, SEED)
    return sampler.epoch(0, range(len(lengths)), by_draw(lengths), by_draw(costs), str)


def plan_best_fit(lengths: Values, _: Values, max_row_tokens: int, window: int, __: float) -> list[PlannedStep]:
    return plan_bbu_train(lengths, lengths, max_row_tokens, window, 0)


def plan_next_fit(lengths: Values, _: Values, max_row_tokens: int, *__: float) -> list[PlannedStep]:
    rows: list[list[SampleVisit]] = []
    num_free = 0
    for i, length in enumerate(lengths):
        if length > num_free:
            rows.append([])
            num_free = max_row_tokens
        rows[-1].append(SampleVisit(0, i))
        num_free -= length
    return [tuple(map(tuple, rows[i : i + NUM_RANKS])) for i in range(0, len(rows), NUM_RANKS)]


def plan_padded(lengths: Values, *_: object) -> list[PlannedStep]:
    return FixedSamples(NUM_SAMPLES, SEED).epoch(0, range(len(lengths)), None, None, None)


PLANS = {"bbu_train": plan_bbu_train, "best fit": plan_best_fit, "next-fit": plan_next_fit, "padded": plan_padded}


def measure(
    plan: str, row_tokens: int | None, divided_by: str, num_samples: int, window: int, balanced_share: float
) -> dict[str, float]:
    lengths, costs = lengths_and_costs(num_samples)
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    steps = PLANS[plan](lengths, costs, row_tokens, window, balanced_share)
    seconds = time.perf_counter() - start
    memory_gib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before) / 2**20  # Linux counts KiB
    key = by_draw(lengths if divided_by == "tokens" else costs)
    ranks_of_steps = [[part for (part,) in planning.assign_micro_batches(step, NUM_RANKS, 1, key)] for step in steps]
    if row_tokens:
        num_slots = row_tokens * sum(map(len, steps))
    else:
        num_slots = sum(
            len(part) * max(lengths[draw.index] for draw in part) for ranks in ranks_of_steps for part in ranks if part
        )
    costliest_rank, costliest_step = costliest_over_mean(
        np.array([[sum(costs[draw.index] for draw in part) for part in ranks] for ranks in ranks_of_steps[:-1]])
    )
    return {
        "useful": sum(lengths) / num_slots,
        "seconds": seconds,
        "memory_gib": memory_gib,
        "costliest_rank": costliest_rank,
        "costliest_step": costliest_step,
    }


def costliest_over_mean(costs: np.ndarray) -> tuple[float, float]:
    """Return the costliest rank over the mean of its step, averaged, and the costliest step over the mean step.

    `costs` has the axes (steps, ranks).
    """
    mean_of_step = costs.mean(1)
    return (costs.max(1) / mean_of_step).mean(), mean_of_step.max() / mean_of_step.mean()


def main() -> None:
    options = arguments.parse(sys.argv[1:], {"samples": 1_000_000, "window": 512, "balanced_share": 0.7})
    cases = [
        (plan, row_tokens, divided_by)
        for row_tokens in (16384, 8192)
        for plan, divided_by in (("bbu_train", "cost"), ("best fit", "tokens"), ("next-fit", "tokens"))
    ]
    results = []
    for case in [*cases, ("padded", None, "cost"), ("padded", None, "tokens")]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            result = process.submit(measure, *case, options.samples, options.window, options.balanced_share).result()
        results.append(dict(zip(("plan", "row_tokens", "divided_by"), case, strict=True)) | result)
    print(f"{options.samples:,} samples, windows of {options.window:,}, balanced_share={options.balanced_share}\n")
    heads = ["plan", "row tokens", "not padding", "seconds", "memory GiB", "divided by"]
    heads += ["costliest rank / mean", "costliest step / mean"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for r in results:
        row = f"{r['row_tokens']:,}" if r["row_tokens"] else "the longest"
        planned = f"{r['plan']} | {row} | {r['useful']:.2%} | {r['seconds']:.1f} | {r['memory_gib']:.2f}"
        print(f"| {planned} | {r['divided_by']} | {r['costliest_rank']:.3f} | {r['costliest_step']:.3f} |")
    path = Path("outputs/benchmarks/packing.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": results} | OmegaConf.to_container(options)))


if __name__ == "__main__":
    main()
