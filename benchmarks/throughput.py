"""Tokens per second of full fine-tuning on one GPU: bbu_train's own loop compared with two peers, in one run.

    python benchmarks/throughput.py [steps=48] [contenders=plain,bbu_train,packed,padded] [key=value of bbu_train ...]

All train on the standard workload (workload.py) with random weights of the true shape. Each contender has its own
process. The peers (peers.py) train on the steps that are counted for bbu_train. Contenders:

plain      the command `python -m bbu_train model=qwen25vl3b collator=packed`: every setting is what auto takes. Only
           random weights and the data are added, and nothing is evaluated or saved
bbu_train  3B shape, bfloat16 compute over float32 master weights, the default head and its losses, tuned by hand
plain_79   plain with the memory that a card of 80 GB has; likewise plain_47 and plain_23.5. The limit is set by
           torch.cuda.set_per_process_memory_fraction: the card keeps its speed
packed     the stock transformers model with flash-attention 2, packed; language loss alone
padded     the same with SDPA, padded
pure       bbu_train with bfloat16 weights alone; half of the steps
frozen     bbu_train without training the vision tower
cached     frozen, with a cache of the teachers' vision features. Reports how often each picture was used; useful work
           leaves out what the cache is to save
7b         bbu_train with the 7B shape; two fifths of the steps
7b_pure    7b with bfloat16 weights alone; two fifths of the steps

Prints a table and writes outputs/benchmarks/throughput.json. Needs a GPU, and the flash-attn package for `packed`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import workload
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers import Qwen2_5_VLForConditionalGeneration

from bbu_train import train
from bbu_train.collator.sizes import sizes
from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.model.flops import backbone_flops
from bbu_train.model.shape import configuration
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.ops import flops
from bbu_train.runtime import environment
from bbu_train.training import loader, planning
from bbu_train.types.samples import PictureFormat, PlannedStep

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs/benchmarks").absolute()
DEFAULTS = {
    "steps": 48,
    "contenders": "plain,bbu_train,packed,padded",
    "contender": None,  # set for the process of each contender
}
PLAIN = ("model=qwen25vl3b", "collator=packed", "model.weights=random", "eval_every=null", "save_every=null")
PLAIN += ("tracker=jsonl", "schedule.num_warmup_steps=1")  # fewer steps than the default warm-up has may run
FAST = (
    *("model.compile=true", "engine.precision=bf16", "model.vocabulary_chunk=8192"),
    *("engine.num_micro_batches=1", "engine.gradient_checkpointing=selective", "num_workers=6", "threads=4"),
)
SHAPE_7B = ("model=qwen25vl7b",)
FROZEN = "optimizer.groups.vision.lr=0"
VARIANTS = {  # overrides, and the share of `steps` that runs
    "plain": ((), 1.0),
    **{f"plain_{gib}": ((), 1.0) for gib in ("79", "47", "23.5")},
    "bbu_train": (FAST, 1.0),
    "frozen": ((*FAST, FROZEN), 1.0),  # the same steps as cached
    "cached": ((*FAST, FROZEN, "model.teacher_cache_gib=1"), 1.0),  # twice the size that the workload's pictures need
    "pure": ((*FAST, "engine.precision=pure_bf16"), 0.5),
    "7b": ((*FAST, *SHAPE_7B, "engine.num_micro_batches=4", "model.vocabulary_chunk=1024"), 0.4),
    "7b_pure": ((*FAST, *SHAPE_7B, "engine.num_micro_batches=2", "engine.precision=pure_bf16"), 0.4),
}
PEER_WARMUP_STEPS = {"packed": 4, "padded": 2}
Result = dict[str, Any]


def compose_config(steps: int, overrides: Sequence[str]) -> DictConfig:
    tokenizer = PlainTextTokenizer(tiny_tokenizer(151936))
    folder = OUTPUTS / "workload"
    if not (folder / "validation.jsonl").exists():
        workload.write(folder, tokenizer, num_samples=128)
    names = [f"outputs={OUTPUTS}", "sweep=throughput", f"run={time.time_ns()}", f"steps={steps}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*PLAIN, *workload.overrides(folder, tokenizer), *names, *overrides])


def plan_steps(cfg: DictConfig) -> tuple[loader.SampleSource, list[PlannedStep], PictureFormat]:
    """Return the samples and the steps as the run itself plans them, and the format of its pictures."""
    build = train.build
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = build(cfg.collator)(preprocessing.picture_format)
    source, _ = loader.sources(build(cfg.data), build(cfg.augmentation), builder, preprocessing.cost, collator)
    plan = planning.StepPlan(build(cfg.sampler), source, cfg.steps)
    return source, list(plan.starting_at(0)), preprocessing.picture_format


def counted_steps(steps: int) -> range:
    """Return the second half of a run, when every length has been compiled, without the profiled steps at the end."""
    return range(steps // 2, steps - 3)


def run_bbu_train(cfg: DictConfig) -> Result:
    first, profiled = counted_steps(cfg.steps).start, counted_steps(cfg.steps).stop
    with open_dict(cfg):
        cfg.tracker.stopwatch = {
            "_target_": "stopwatch.Stopwatch",
            "folder": str(Path(cfg.folder)),
            "profiled_step": profiled,
        }
    train.train(cfg)
    stopwatch = json.loads((Path(cfg.folder) / "stopwatch.json").read_text())
    rows = [json.loads(line) for line in (Path(cfg.folder) / "metrics.jsonl").read_text().splitlines()]
    counted = rows[first:profiled]
    times = [stopwatch["times"][str(step)] for step in range(first, profiled + 1)]
    seconds = [after - before for before, after in zip(times[:-1], times[1:], strict=True)]
    print("seconds of each step:", *(f"{value:.2f}" for value in seconds))
    taken = json.loads((Path(cfg.folder) / "environment.json").read_text())["settings"]
    joules = stopwatch["joules"][str(profiled)] - stopwatch["joules"][str(first)]
    return {
        "weights": "bfloat16 alone" if cfg.engine.precision == "pure_bf16" else "float32 masters",
        "settings": ", ".join(f"{key}={setting['value']}" for key, setting in taken.items()),
        "joules_per_step": joules / len(seconds),
        "step_seconds": sum(seconds) / len(seconds),
        "device_seconds": stopwatch["device_seconds"],
        "data_seconds": mean(row["time/data_seconds"] for row in counted),
        "memory_gib": rows[-1]["memory/peak_gib"],
        "tokens": mean(row["time/tokens_per_second"] * row["time/step_seconds"] for row in counted),
        "useful_tflop": mean(row["time/model_tflops"] * row["time/step_seconds"] for row in counted),
    } | (teacher_uses(cfg, first, counted) if cfg.model.teacher_cache_gib else {})


def teacher_uses(cfg: DictConfig, first: int, counted: list[dict[str, float]]) -> Result:
    """Return the mean number of uses of a teacher's picture, and the share of uses that the cache served.

    "uses" is over the counted steps, "uses_so_far" over all steps up to the last counted one; pictures that are never
    used do not count.
    """
    source, steps, _ = plan_steps(cfg)
    last = first + len(counted)

    def mean_uses(steps: Sequence[PlannedStep]) -> float:
        draws = [draw for step in steps for row in step for draw in row]
        paths = [
            picture.path for draw in draws for picture in source.teachers_of(source.samples[draw.index], draw.epoch)
        ]
        return len(paths) / len(set(paths))

    hits = mean(row["time/teacher_cache_hit_rate"] for row in counted if "time/teacher_cache_hit_rate" in row)
    return {"uses": mean_uses(steps[first:last]), "uses_so_far": mean_uses(steps[:last]), "cache_hits": hits}


def run_peer(cfg: DictConfig, layout: str) -> Result:
    import peers

    num_warmup_steps, counted = PEER_WARMUP_STEPS[layout], counted_steps(cfg.steps)
    source, steps, picture_format = plan_steps(cfg)
    steps = [*steps[:num_warmup_steps], *steps[counted.start : counted.stop]]
    encoded = [[source.encode(draw) for row in step for draw in row] for step in steps]
    config = configuration(None, "random", OmegaConf.to_container(cfg.model.shape))
    result = peers.run(config, layout, encoded, num_warmup_steps)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)  # peers have no head, so the backbone's work is all of it
    counted_sizes = [sizes(samples, picture_format) for samples in encoded[num_warmup_steps:]]
    return result | {
        "weights": "float32",
        "tokens": mean(each.tokens for each in counted_sizes),
        "useful_tflop": mean(backbone_flops(model, each) for each in counted_sizes) / 1e12,
    }


def matmul_rates() -> dict[str, float]:
    """Return the TFLOP/s of a large bfloat16 product of random numbers: in a burst of 20, and after 5 s of products.

    A training step draws power without a pause, as the sustained products do. Most published figures are of bursts.
    """
    runs = {"burst": (3, 20), "sustained": (3500, 700)}  # numbers of products before, and counted
    return {
        name: flops.matmul_flops_per_second(torch.device("cuda"), torch.bfloat16, *run) / 1e12
        for name, run in runs.items()
    }


def table(results: dict[str, Result], rates: dict[str, float]) -> str:
    shown_rates = ", ".join(f"{rate:.0f} TFLOP/s {name}" for name, rate in rates.items())
    lines = [f"large bfloat16 product: {shown_rates}", ""]
    heads = ["contender", "weights", "tokens/s", "useful TFLOP/s"]
    heads += [f"share of {name} rate" for name in rates]
    heads += ["joules/token", "memory GiB", "step s", "device s", "data wait s"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, r in results.items():
        useful = r["useful_tflop"] / r["step_seconds"]
        cells = [r["weights"], f"{r['tokens'] / r['step_seconds']:,.0f}", f"{useful:.0f}"]
        cells += [f"{useful / rate:.1%}" for rate in rates.values()]
        cells += [f"{r['joules_per_step'] / r['tokens']:.3f}" if "joules_per_step" in r else ""]
        cells += [f"{r['memory_gib']:.1f}", f"{r['step_seconds']:.3f}"]
        cells += [f"{r[key]:.3f}" if r.get(key) is not None else "" for key in ("device_seconds", "data_seconds")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"{name}: {r['settings']}" for name, r in results.items() if "settings" in r)]
    for name, r in results.items():
        if "uses" in r:
            lines += [
                "",
                f"{name}: a teacher's picture is used {r['uses']:.1f} times in the counted steps and "
                f"{r['uses_so_far']:.1f} times since the first step; {r['cache_hits']:.0%} of uses were cache hits",
            ]
    return "\n".join(lines)


def main() -> None:
    own_words = [word for word in sys.argv[1:] if word.split("=")[0] in DEFAULTS]
    overrides = [word for word in sys.argv[1:] if word not in own_words]
    options = OmegaConf.merge(DEFAULTS, OmegaConf.from_cli(own_words))
    if options.contender:
        result = run_contender(options.contender, options.steps, overrides)
        (OUTPUTS / f"{options.contender}.json").write_text(json.dumps(result))
        return
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    environment.set_defaults()  # for the processes of the contenders, as in the program
    results, rates = {}, matmul_rates()
    for contender in options.contenders.split(","):
        print(f"running {contender} ...", flush=True)
        run = [sys.executable, __file__, *sys.argv[1:], f"contender={contender}"]
        if subprocess.run(run, check=False).returncode == 0:
            results[contender] = json.loads((OUTPUTS / f"{contender}.json").read_text())
            print(table(results, rates), flush=True)
            content = {"matmul_tflops": rates, "overrides": overrides} | results
            (OUTPUTS / "throughput.json").write_text(json.dumps(content))


def run_contender(contender: str, steps: int, overrides: list[str]) -> Result:
    if contender in PEER_WARMUP_STEPS:
        return run_peer(compose_config(steps, overrides), contender)
    variant_overrides, share = VARIANTS[contender]
    if "_" in contender and contender.startswith("plain"):
        limit = float(contender.removeprefix("plain_")) * 2**30
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    return run_bbu_train(compose_config(int(share * steps), [*variant_overrides, *overrides]))


if __name__ == "__main__":
    main()
