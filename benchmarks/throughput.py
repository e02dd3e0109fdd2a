"""Tokens per second of full fine-tuning on one GPU, through the program's own loop, beside two peers, in one run.

    python benchmarks/throughput.py [steps=48] [contenders=ours,packed,padded,frozen,7b] [key=value of bbu_train ...]

The standard workload (workload.py), random weights of the true shape, bfloat16 compute over float32 weights, all six
losses with the `detr` head for us and the language loss alone for the peers, which are packed and padded. frozen is
ours without training the vision tower, 7b is ours of that shape. Each contender has a process of its own.
Prints a table and writes outputs/benchmarks/throughput.json. Needs a GPU, and the flash-attn package for one peer.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import flops
import torch
import workload
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from bbu_train import loader, planning, train
from bbu_train.conversation.text import Text
from bbu_train.model.shape import configuration
from bbu_train.model.tiny_tokenizer import tiny_tokenizer

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs/benchmarks").absolute()
OWN_KEYS = {"steps": 48, "contenders": "ours,packed,padded", "contender": None}
FAST = (
    *("model=qwen25vl3b", "model.weights=random", "model.compile=true", "engine.precision=bf16"),
    *("model.network.vocabulary_chunk=8192", "head.vocabulary_chunk=8192"),
    *("engine.num_micro_batches=1", "engine.gradient_checkpointing=selective", "num_workers=6", "threads=4"),
    *("tracker=jsonl", "eval_every=null", "save_every=null", "schedule.num_warmup_steps=1"),
)
OURS = {  # overrides, and the share of `steps` that is run
    "ours": ((), 1.0),
    "frozen": (("optimizer.groups.vision.lr=0",), 0.5),
    "7b": (("model=qwen25vl7b", "engine.num_micro_batches=8", "engine.gradient_checkpointing=full"), 0.25),
}
PEER_STEPS = {"packed": (10, 4), "padded": (5, 2)}  # steps, and how many of them warm up


def configured(steps: int, overrides: list[str]):
    text = Text(tiny_tokenizer(151936))
    folder = OUTPUTS / "workload"
    if not (folder / "validation.jsonl").exists():
        workload.write(folder, text, num_samples=128)
    place = [f"outputs={OUTPUTS}", "sweep=throughput", f"run={time.time_ns()}", f"steps={steps}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*FAST, *workload.overrides(folder, text), *place, *overrides])


def planned(cfg):
    """The samples and the steps of a run, as the run itself makes them, and the model's config."""
    build = train.build
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = build(cfg.collator)(preprocessing.picture_format)
    source, _ = loader.sources(build(cfg.data), builder, preprocessing.cost, collator)
    shape = OmegaConf.to_container(cfg.model.shape)
    plan = planning.Plan(build(cfg.sampler), source, cfg.steps)
    return source, list(plan.starting_at(0)), configuration(None, "random", shape)


def tokens_and_flops(cfg, source, step, config) -> tuple[int, float]:
    num_tokens, useful = 0, 0.0
    for draw in (draw for row in step for draw in row):
        sample = source.encode(draw)
        length = len(sample.input_ids)
        num_tokens += length
        useful += flops.language(config, length, int((sample.roles > 0).sum()))
        is_frozen = cfg.optimizer.groups.vision.lr == 0
        useful += sum(flops.vision(config, int(grid.prod()), is_frozen) for grid in sample.grid_thw)
        if "num_queries" in cfg.head:
            student = int(sample.grid_thw[-1].prod()) // 4
            words = sum(map(len, sample.captions))
            useful += flops.detr(config, cfg.head, student, sample.memory_end, len(sample.captions), words)
    return num_tokens, useful


def ours(cfg) -> dict[str, float]:
    source, steps, config = planned(cfg)
    profiled = cfg.steps - 3
    with open_dict(cfg):
        cfg.tracker.stopwatch = {
            "_target_": "stopwatch.Stopwatch",
            "folder": str(Path(cfg.folder)),
            "profiled_step": profiled,
        }
    train.train(cfg)
    watched = json.loads((Path(cfg.folder) / "stopwatch.json").read_text())
    rows = [json.loads(line) for line in (Path(cfg.folder) / "metrics.jsonl").read_text().splitlines()]
    first = cfg.steps // 2  # by then every length has been met
    times = [watched["times"][str(step)] for step in range(first, profiled + 1)]
    seconds = [after - before for before, after in zip(times[:-1], times[1:], strict=True)]
    print("seconds of each step:", *(f"{value:.2f}" for value in seconds))
    return {
        "step_seconds": sum(seconds) / len(seconds),
        "device_seconds": watched["device_seconds"],
        "data_seconds": sum(row["time/data_seconds"] for row in rows[first:profiled]) / (profiled - first),
        "memory_gib": rows[-1]["memory/peak_gib"],
    } | work(cfg, source, steps[first:profiled], config)


def work(cfg, source, steps, config) -> dict[str, float]:
    counted = [tokens_and_flops(cfg, source, step, config) for step in steps]
    tokens, useful = (sum(values) / len(counted) for values in zip(*counted, strict=True))
    return {"tokens": tokens, "useful_tflop": useful / 1e12}


def peer(cfg, layout: str) -> dict[str, float]:
    import peers

    cfg.steps, num_warm = PEER_STEPS[layout]
    with open_dict(cfg):
        cfg.head = {}  # what a peer computes without a head is useful without one
    source, steps, config = planned(cfg)
    encoded = [[source.encode(draw) for row in step for draw in row] for step in steps]
    measured = peers.run(config, layout, encoded, num_warm)
    return measured | work(cfg, source, steps[num_warm:], config)


def matrix_rates() -> dict[str, float]:
    """TFLOP/s of a large bfloat16 product of random numbers: the first 20, and after it has run for 5 s.

    A training step draws power without a pause, as the second does; most figures in print are of the first kind.
    """
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def rate(num_products: int) -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(num_products):
            a @ b
        ended.record()
        torch.cuda.synchronize()
        return num_products * 2 * 8192**3 / (began.elapsed_time(ended) / 1e3) / 1e12

    rate(3)
    at_once = rate(20)
    rate(3500)
    return {"at_once": at_once, "sustained": rate(700)}


def table(results: dict[str, dict], rates: dict[str, float]) -> str:
    says = ", ".join(f"{rate:.0f} TFLOP/s {when}" for when, rate in rates.items()).replace("_", " ")
    lines = [f"a large bf16 product: {says}", ""]
    heads = ["how", "tokens/s", "useful TFLOP/s", "of the product", "of it sustained", "memory GiB", "step s"]
    heads += ["device s", "data wait s"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, r in results.items():
        useful = r["useful_tflop"] / r["step_seconds"]
        cells = [f"{r['tokens'] / r['step_seconds']:,.0f}", f"{useful:.0f}"]
        cells += [f"{useful / rate:.1%}" for rate in rates.values()]
        cells += [f"{r['memory_gib']:.1f}", f"{r['step_seconds']:.3f}"]
        cells += [f"{r[key]:.3f}" if r.get(key) is not None else "" for key in ("device_seconds", "data_seconds")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    given = OmegaConf.from_cli([argument for argument in sys.argv[1:] if argument.split("=")[0] in OWN_KEYS])
    own = OmegaConf.merge(OWN_KEYS, given)
    overrides = [argument for argument in sys.argv[1:] if argument.split("=")[0] not in OWN_KEYS]
    if own.contender:
        (OUTPUTS / f"{own.contender}.json").write_text(json.dumps(contend(own.contender, own.steps, overrides)))
        return
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    # Lengths differ from step to step: without it the allocator keeps blocks of every size.
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ
    results, rates = {}, matrix_rates()
    for contender in own.contenders.split(","):
        print(f"running {contender} ...", flush=True)
        run = [sys.executable, __file__, *sys.argv[1:], f"contender={contender}"]
        if subprocess.run(run, check=False, env=environment).returncode == 0:
            results[contender] = json.loads((OUTPUTS / f"{contender}.json").read_text())
            print(table(results, rates), flush=True)
    written = {"matrix_tflops": rates, "overrides": overrides} | results
    (OUTPUTS / "throughput.json").write_text(json.dumps(written))


def contend(contender: str, steps: int, overrides: list[str]) -> dict[str, float]:
    if contender in PEER_STEPS:
        return peer(configured(steps, overrides), contender)
    its_overrides, share = OURS[contender]
    return ours(configured(int(share * steps), [*its_overrides, *overrides]))


if __name__ == "__main__":
    main()
