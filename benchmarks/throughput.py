"""Tokens per second of full fine-tuning on one GPU, through the program's own loop, beside two peers, in one run.

    python benchmarks/throughput.py [steps=48] [contenders=ours,packed,padded] [key=value of bbu_train ...]

The standard workload (workload.py), random weights of the true shape, bfloat16 compute over float32 master weights, all
six losses with the `detr` head for us and the language loss alone for the peers, which are packed and padded, and count
the same steps of the same samples. pure is ours without masters, and takes half the steps. frozen is ours without
training the vision tower, cached is frozen with what the tower makes of teachers' pictures kept: it says how often each
was used, and its useful work leaves out what the cache is there to spare. 7b and 7b_pure are ours of that shape, and
take two fifths of the steps. Each contender has a process of its own.
Prints a table and writes outputs/benchmarks/throughput.json. Needs a GPU, and the flash-attn package for one peer.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import torch
import workload
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from transformers import Qwen2_5_VLForConditionalGeneration

from bbu_train import train
from bbu_train.collator.sizes import sizes
from bbu_train.conversation.text import Text
from bbu_train.model.flops import backbone_flops
from bbu_train.model.shape import configuration
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.ops import flops
from bbu_train.training import loader, planning

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs/benchmarks").absolute()
OWN_KEYS = {"steps": 48, "contenders": "ours,packed,padded", "contender": None}
FAST = (
    *("model=qwen25vl3b", "model.weights=random", "model.compile=true", "engine.precision=bf16"),
    *("model.network.vocabulary_chunk=8192", "head.vocabulary_chunk=8192"),
    *("engine.num_micro_batches=1", "engine.gradient_checkpointing=selective", "num_workers=6", "threads=4"),
    *("tracker=jsonl", "eval_every=null", "save_every=null", "schedule.num_warmup_steps=1"),
)
SEVEN = ("model=qwen25vl7b",)
FROZEN = "optimizer.groups.vision.lr=0"
OURS = {  # overrides, and the share of `steps` that is run
    "ours": ((), 1.0),
    "frozen": ((FROZEN,), 1.0),  # the same steps as cached
    "cached": ((FROZEN, "model.teacher_cache_gib=1"), 1.0),  # twice what the pictures of the workload need
    "pure": (("engine.precision=pure_bf16",), 0.5),
    "7b": ((*SEVEN, "engine.num_micro_batches=4", "model.network.vocabulary_chunk=1024"), 0.4),
    "7b_pure": ((*SEVEN, "engine.num_micro_batches=2", "engine.precision=pure_bf16"), 0.4),
}
PEER_WARM_STEPS = {"packed": 4, "padded": 2}


def configured(steps: int, overrides: list[str]):
    text = Text(tiny_tokenizer(151936))
    folder = OUTPUTS / "workload"
    if not (folder / "validation.jsonl").exists():
        workload.write(folder, text, num_samples=128)
    place = [f"outputs={OUTPUTS}", "sweep=throughput", f"run={time.time_ns()}", f"steps={steps}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*FAST, *workload.overrides(folder, text), *place, *overrides])


def planned(cfg):
    """The samples and the steps of a run, as the run itself makes them, and its pictures' format."""
    build = train.build
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = build(cfg.collator)(preprocessing.picture_format)
    source, _ = loader.sources(build(cfg.data), build(cfg.augmentation), builder, preprocessing.cost, collator)
    plan = planning.StepPlan(build(cfg.sampler), source, cfg.steps)
    return source, list(plan.starting_at(0)), preprocessing.picture_format


def counted_steps(steps: int) -> range:
    """The second half of a run, by which every length has been met, up to what the stopwatch looks at the device in."""
    return range(steps // 2, steps - 3)


def ours(cfg) -> dict[str, float]:
    first, profiled = counted_steps(cfg.steps).start, counted_steps(cfg.steps).stop
    with open_dict(cfg):
        cfg.tracker.stopwatch = {
            "_target_": "stopwatch.Stopwatch",
            "folder": str(Path(cfg.folder)),
            "profiled_step": profiled,
        }
    train.train(cfg)
    watched = json.loads((Path(cfg.folder) / "stopwatch.json").read_text())
    rows = [json.loads(line) for line in (Path(cfg.folder) / "metrics.jsonl").read_text().splitlines()]
    counted = rows[first:profiled]
    times = [watched["times"][str(step)] for step in range(first, profiled + 1)]
    seconds = [after - before for before, after in zip(times[:-1], times[1:], strict=True)]
    print("seconds of each step:", *(f"{value:.2f}" for value in seconds))
    return {
        "weights": "bfloat16 alone" if cfg.engine.precision == "pure_bf16" else "float32 masters",
        "step_seconds": sum(seconds) / len(seconds),
        "device_seconds": watched["device_seconds"],
        "data_seconds": mean(row["time/data_seconds"] for row in counted),
        "memory_gib": rows[-1]["memory/peak_gib"],
        "tokens": mean(row["time/tokens_per_second"] * row["time/step_seconds"] for row in counted),
        "useful_tflop": mean(row["time/model_tflops"] * row["time/step_seconds"] for row in counted),
    } | (teachers(cfg, first, counted) if cfg.model.teacher_cache_gib else {})


def teachers(cfg, first: int, counted: list[dict]) -> dict[str, float]:
    """How often each teacher's picture that is used at all is used, in the counted steps and up to their end, and the
    share of those uses in the counted steps that the cache served."""
    source, steps, _ = planned(cfg)
    last = first + len(counted)

    def uses_of_each(some) -> float:
        draws = [draw for step in some for row in step for draw in row]
        used = [
            picture.path for draw in draws for picture in source.teachers_of(source.samples[draw.index], draw.epoch)
        ]
        return len(used) / len(set(used))

    hits = mean(row["time/teacher_cache_hits"] for row in counted if "time/teacher_cache_hits" in row)
    return {"uses": uses_of_each(steps[first:last]), "uses_so_far": uses_of_each(steps[:last]), "cache_hits": hits}


def peer(cfg, layout: str) -> dict[str, float]:
    import peers

    num_warm, counted = PEER_WARM_STEPS[layout], counted_steps(cfg.steps)
    source, steps, picture_format = planned(cfg)
    taken = [*steps[:num_warm], *steps[counted.start : counted.stop]]
    encoded = [[source.encode(draw) for row in step for draw in row] for step in taken]
    config = configuration(None, "random", OmegaConf.to_container(cfg.model.shape))
    measured = peers.run(config, layout, encoded, num_warm)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)  # what a peer computes without a head is useful without one
    needed = [sizes(samples, picture_format) for samples in encoded[num_warm:]]
    useful = mean(backbone_flops(model, its) for its in needed)
    measured["weights"] = "float32"
    return measured | {"tokens": mean(its.tokens for its in needed), "useful_tflop": useful / 1e12}


def matrix_rates() -> dict[str, float]:
    """TFLOP/s of a large bfloat16 product of random numbers: the first 20, and after it has run for 5 s.

    A training step draws power without a pause, as the second does; most figures in print are of the first kind.
    """
    runs = {"at_once": (3, 20), "sustained": (3500, 700)}  # products before, and counted ones
    return {when: flops.matrix_rate(torch.device("cuda"), torch.bfloat16, *run) / 1e12 for when, run in runs.items()}


def table(results: dict[str, dict], rates: dict[str, float]) -> str:
    says = ", ".join(f"{rate:.0f} TFLOP/s {when}" for when, rate in rates.items()).replace("_", " ")
    lines = [f"a large bf16 product: {says}", ""]
    heads = [
        "how",
        "weights",
        "tokens/s",
        "useful TFLOP/s",
        "of the product",
        "of it sustained",
        "memory GiB",
        "step s",
    ]
    heads += ["device s", "data wait s"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, r in results.items():
        useful = r["useful_tflop"] / r["step_seconds"]
        cells = [r["weights"], f"{r['tokens'] / r['step_seconds']:,.0f}", f"{useful:.0f}"]
        cells += [f"{useful / rate:.1%}" for rate in rates.values()]
        cells += [f"{r['memory_gib']:.1f}", f"{r['step_seconds']:.3f}"]
        cells += [f"{r[key]:.3f}" if r.get(key) is not None else "" for key in ("device_seconds", "data_seconds")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, r in results.items():
        if "uses" in r:
            lines += ["", f"{name}: a teacher's picture is used {r['uses']:.1f} times in the counted steps and "]
            lines[-1] += f"{r['uses_so_far']:.1f} times since the first; {r['cache_hits']:.0%} of uses found it kept"
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
    if contender in PEER_WARM_STEPS:
        return peer(configured(steps, overrides), contender)
    its_overrides, share = OURS[contender]
    return ours(configured(int(share * steps), [*its_overrides, *overrides]))


if __name__ == "__main__":
    main()
