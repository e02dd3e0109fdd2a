"""How full rows are, how long the plan of an epoch takes, and how evenly it is divided. Needs no GPU.

    python benchmarks/packing.py [samples=1000000] [window=512] [balanced_share=0.7]

Lengths are those of the standard workload (workload.py), costs those of the 3B shape (bbu_train/model/cost.py).
Ours is `sampler=token_budget`, 8 rows a step for 8 ranks. Best fit is the same without regard to cost: nothing is
dealt, and tokens are evened. Next-fit opens a row when the next sample does not fit the last one. Padded is
`sampler=fixed_samples` with 64 samples, each as long as the longest of its rank. Each plan is made in a process of its
own; memory is what that process grew by. Steps are divided among ranks by tokens or by cost: the table says what the
dearest rank costs over the mean of its step, as a mean over steps, and what the dearest step costs over the mean step;
the epoch's last step, which is what is left, does not count. Prints it and writes outputs/benchmarks/packing.json.
"""

import json
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import workload
from omegaconf import OmegaConf

from bbu_train.model import cost
from bbu_train.model.shape import configuration
from bbu_train.runtime.seeds import generator
from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.sampler.token_budget import TokenBudget
from bbu_train.training import planning
from bbu_train.types.samples import Draw, Step

SEED, NUM_RANKS, NUM_SAMPLES = 17, 8, 64
SHAPE = Path(__file__).parents[1] / "conf" / "model" / "qwen25vl3b.yaml"
Sizes = list[int]  # a number for each sample


def sizes(num_samples: int) -> tuple[Sizes, Sizes]:
    """Tokens and cost of each sample."""
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


def of_draw(values: Sizes):
    return lambda draw: values[draw.index]


def ours(lengths: Sizes, costs: Sizes, max_row_tokens: int, window: int, balanced_share: float) -> list[Step]:
    sampler = TokenBudget(max_row_tokens, NUM_RANKS, window, balanced_share, SEED)
    return sampler.epoch(0, range(len(lengths)), of_draw(lengths), of_draw(costs), str)


def best_fit(lengths: Sizes, _, max_row_tokens: int, window: int, __) -> list[Step]:
    return ours(lengths, lengths, max_row_tokens, window, 0)


def next_fit(lengths: Sizes, _, max_row_tokens: int, *__) -> list[Step]:
    rows: list[list[Draw]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = max_row_tokens
        rows[-1].append(Draw(0, i))
        room -= length
    return [tuple(map(tuple, rows[i : i + NUM_RANKS])) for i in range(0, len(rows), NUM_RANKS)]


def padded(lengths: Sizes, *_) -> list[Step]:
    return FixedSamples(NUM_SAMPLES, SEED).epoch(0, range(len(lengths)), None, None, None)


PLANS = {"ours": ours, "best fit": best_fit, "next-fit": next_fit, "padded": padded}


def measured(
    name: str, row_tokens: int | None, divided_by: str, num_samples: int, window: int, balanced_share: float
) -> dict[str, float]:
    lengths, costs = sizes(num_samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    steps = PLANS[name](lengths, costs, row_tokens, window, balanced_share)
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20  # Linux counts KiB
    by = of_draw(lengths if divided_by == "tokens" else costs)
    ranks = [[part for (part,) in planning.deal(step, NUM_RANKS, 1, by)] for step in steps]
    if row_tokens:
        slots = row_tokens * sum(map(len, steps))
    else:
        slots = sum(len(part) * max(lengths[draw.index] for draw in part) for its in ranks for part in its if part)
    rank, step = over_mean(np.array([[sum(costs[draw.index] for draw in part) for part in its] for its in ranks[:-1]]))
    useful = sum(lengths) / slots
    return {"useful": useful, "seconds": seconds, "memory_gib": grown, "dearest_rank": rank, "dearest_step": step}


def over_mean(costs: np.ndarray) -> tuple[float, float]:
    """Of costs by step and rank: the dearest rank's over the mean of its step, on average, and the dearest step's."""
    steps = costs.mean(1)
    return (costs.max(1) / steps).mean(), steps.max() / steps.mean()


def main() -> None:
    given = OmegaConf.merge(
        {"samples": 1_000_000, "window": 512, "balanced_share": 0.7}, OmegaConf.from_cli(sys.argv[1:])
    )
    cases = [
        (plan, tokens, by)
        for tokens in (16384, 8192)
        for plan, by in (("ours", "cost"), ("best fit", "tokens"), ("next-fit", "tokens"))
    ]
    results = []
    for case in [*cases, ("padded", None, "cost"), ("padded", None, "tokens")]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found = process.submit(measured, *case, given.samples, given.window, given.balanced_share).result()
        results.append(dict(zip(("plan", "row_tokens", "divided_by"), case, strict=True)) | found)
    print(f"{given.samples:,} samples, windows of {given.window:,}, {given.balanced_share:.0%} of their tokens dealt\n")
    print("| plan | row tokens | slots useful | seconds | memory GiB | divided by | dearest rank | dearest step |")
    print("|---|---|---|---|---|---|---|---|")
    for r in results:
        row = f"{r['row_tokens']:,}" if r["row_tokens"] else "the longest"
        planned = f"{r['plan']} | {row} | {r['useful']:.2%} | {r['seconds']:.1f} | {r['memory_gib']:.2f}"
        print(f"| {planned} | {r['divided_by']} | {r['dearest_rank']:.3f} | {r['dearest_step']:.3f} |")
    path = Path("outputs/benchmarks/packing.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": results} | OmegaConf.to_container(given)))


if __name__ == "__main__":
    main()
