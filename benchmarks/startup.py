"""Seconds from the start of a process to the end of its second step, and where they go.

    python benchmarks/startup.py [rows=first,second,shared,resumed] [key=value of bbu_train ...]
    python benchmarks/startup.py commit=3088397       # measures that commit too, as the peer, in the same call
    python benchmarks/startup.py device=cpu           # model=tiny, compiled: whether the program works, not a result

Each row is a run of `python -m bbu_train` on the standard workload (workload.py) in a process of its own. Trees begin
with empty caches of compiled code, in a temporary folder, so nothing of another run helps. Rows, in this order:

first       random weights, empty caches
second      random weights, the caches that `first` left
shared      random weights, empty caches of torch and Triton, but the outputs folder of `first` and `second`: what a job
            on another node of a sweep finds
pretrained  a checkpoint of the same shape in bfloat16, which the program writes once (7 GB for 3B). Its pages may still
            be in memory
resumed     from a checkpoint of `second`, which then saves one (45 GB for 3B). Without this row no run saves

Options:

folder=...      for caches, runs and checkpoints; null: a temporary folder. It is emptied at the end
commit=...      the peer: a commit of this repository
peer=...        the peer: the path of another checkout
contenders=...  own,peer; either alone
tuned=...       true: the peer gets the settings that commits from before the settings `auto` need to be fast
device=...      cuda or cpu
profile=...     true: also write outputs/benchmarks/startup-<contender>-<row>.txt, with the times of Python functions,
                which takes time itself

Prints tables and writes outputs/benchmarks/startup.json.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs/benchmarks").absolute()
CLOCK = Path(__file__).with_name("startup_clock.py")
ROWS = ("first", "second", "shared", "pretrained", "resumed")
DEFAULTS = {
    "rows": "first,second,shared",
    "folder": None,
    "commit": None,
    "peer": None,
    "contenders": None,
    "tuned": True,
    "device": "cuda",
    "profile": False,
    "write_checkpoint": None,  # set for the process that writes the checkpoint of `pretrained`
}
PLAIN = {
    "cuda": ("model=qwen25vl3b", "collator=packed"),
    "cpu": ("model=tiny", "collator=packed", "model.compile=true", "engine.gradient_checkpointing=selective"),
}
TUNED = {
    "cuda": (
        *("model.compile=true", "engine.precision=bf16", "engine.num_micro_batches=1"),
        *("engine.gradient_checkpointing=selective", "num_workers=6", "threads=4"),
        *("model.network.vocabulary_chunk=8192", "head.vocabulary_chunk=8192"),
    ),
    "cpu": ("threads=1",),
}  # what a peer from before the settings `auto` needs
RUN = ("tracker=jsonl", "sweep=startup", "steps=100", "schedule.num_warmup_steps=1")
ENDS = (75, 130)  # of a run that a signal ended, and of one that left
AFTERWARDS = ("first save", "compiled graphs to their file")  # parts that come after the second step
Result = dict[str, Any]


def workload_overrides(options: DictConfig) -> list[str]:
    import workload

    from bbu_train.conversation.text import PlainTextTokenizer
    from bbu_train.model.tiny_tokenizer import tiny_tokenizer

    tokenizer = PlainTextTokenizer(tiny_tokenizer(151936))
    folder = OUTPUTS / "workload"
    if not (folder / "validation.jsonl").exists():
        workload.write(folder, tokenizer, num_samples=128)
    return workload.overrides(folder, tokenizer)


def write_checkpoint(folder: Path, device: str, overrides: list[str]) -> None:
    """Write random weights of the config's shape, tokenizer and image processor, as transformers saves them."""
    import torch
    from hydra import compose, initialize_config_dir
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from bbu_train.model.shape import configuration
    from bbu_train.model.tiny_tokenizer import tiny_tokenizer

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=["sweep=startup", "run=checkpoint", *overrides])
    config = configuration(None, "random", OmegaConf.to_container(cfg.model.shape))
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer(config.text_config.vocab_size).save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)


def run_row(row: str, tree: Path, folder: Path, overrides: list[str], saves: bool, has_profile: bool) -> Result:
    """Run one process of `tree`. `folder` is the contender's: its runs, its caches."""
    caches = folder / ("caches-shared" if row == "shared" else "caches")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    if has_profile:
        environment["STARTUP_PROFILE"] = str(OUTPUTS / f"startup-{folder.name}-{row}.txt")
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    outputs = folder / "outputs"
    result, log = folder / f"{row}.json", folder / f"{row}.log"
    words = [f"resume={outputs}/startup/second"] if row == "resumed" else [*overrides, f"run={row}"]
    command = [sys.executable, str(CLOCK), str(time.monotonic()), str(result), "save" if saves else "leave", *words]
    if row != "resumed":
        command.append(f"outputs={outputs}")
    with log.open("wb") as file:
        code = subprocess.run(command, env=environment, cwd=tree, stdout=file, stderr=file, check=False).returncode
    if code not in ENDS or not result.exists():
        raise SystemExit(f"The run {row} of {tree} ended with {code}:\n{log.read_text(errors='replace')[-4000:]}")
    return json.loads(result.read_text())


def measure(name: str, tree: Path, folder: Path, options: DictConfig, overrides: list[str]) -> dict[str, Result]:
    rows = [row for row in ROWS if row in options.rows.split(",")]
    folder.mkdir()
    results = {}
    for row in rows:
        weights = ["model.weights=random"]
        if row == "pretrained":
            weights = ["model.weights=pretrained", f"model.checkpoint={folder.parent / 'checkpoint'}"]
        print(f"running {name}, {row} ...", flush=True)
        saves = row == "second" and "resumed" in rows
        results[row] = run_row(row, tree, folder, [*overrides, *weights], saves, options.profile)
        shutil.rmtree(folder / "caches-shared", ignore_errors=True)
        print(f"{name}, {row}: {results[row]['total']:.1f} s", flush=True)
    print(table({name: results}), flush=True)
    shutil.rmtree(folder)  # or two checkpoints would have to fit on the disk
    return results


def counted(result: Result, part: str, key: str) -> float:
    return result["counts"].get(part, {}).get(key, 0)


SUMS = {
    "graphs of Dynamo": "stats unique_graphs",
    "AOTAutograd cache: hits": "aot_autograd autograd_cache_hit",
    "AOTAutograd cache: misses": "aot_autograd autograd_cache_miss",
    "AOTAutograd cache: bypasses": "aot_autograd autograd_cache_bypass",
    "Inductor cache: hits": "inductor fxgraph_cache_hit",
    "Inductor cache: misses": "inductor fxgraph_cache_miss",
    "Inductor cache: bypasses": "inductor fxgraph_cache_bypass",
    "seconds in Dynamo and below, forward": "seconds entire_frame_compile",
    "of them below Dynamo (backend)": "seconds backend_compile",
    "seconds of compiling backward graphs": "seconds entire_backward_compile",
}


NUM_STAGES = 25


def stages(results: dict[str, Result]) -> list[str]:
    """Return the longest stages of compilation, as torch names them, summed over the run. Stages contain others."""
    sums = {
        name: sum((Counter(counts) for counts in result["counts"].values()), Counter())
        for name, result in results.items()
    }
    longest = sum((Counter(each) for each in sums.values()), Counter()).most_common()
    names = [stage for stage, _ in longest if stage.startswith("stage ")][:NUM_STAGES]
    cells = [[stage.removeprefix("stage "), *(f"{sums[name][stage]:.1f}" for name in results)] for stage in names]
    heads = ["seconds in a stage of compilation", *results]
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *cells)]


def table(results: dict[str, dict[str, Result]]) -> str:
    """Return the seconds of each part, and then what torch counted, with a column for each row of each contender."""
    columns = {f"{name}, {row}": result for name, rows in results.items() for row, result in rows.items()}
    parts = list(dict.fromkeys(part for result in columns.values() for part in result["spans"]))
    lines = [f"| seconds | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]

    def add(name: str, values: list[float | None], digits: int) -> None:
        cells = ["" if value is None else f"{value:.{digits}f}" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")

    add("**to the end of step 2**", [result["total"] for result in columns.values()], 1)
    for part in parts:
        add(part, [result["spans"].get(part) for result in columns.values()], 1)
    covered = [sum(s for part, s in r["spans"].items() if part not in AFTERWARDS) for r in columns.values()]
    add("everything else", [r["total"] - c for r, c in zip(columns.values(), covered, strict=True)], 1)
    lines += ["", f"| counted by torch | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, key in SUMS.items():
        for part in parts:
            values = [counted(result, part, key) for result in columns.values()]
            if any(values):
                add(f"{name}, {part}", values, 1 if key.startswith("seconds") else 0)
    return "\n".join([*lines, "", *stages(columns)])


def unpack(commit: str, folder: Path) -> Path:
    """Unpack a commit of this repository."""
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
    return tree


def main() -> None:
    own_words = [word for word in sys.argv[1:] if word.split("=")[0] in DEFAULTS]
    given = [word for word in sys.argv[1:] if word not in own_words]
    options = OmegaConf.merge(DEFAULTS, OmegaConf.from_cli(own_words))
    plain, tuned = PLAIN[options.device], TUNED[options.device]
    if options.write_checkpoint:
        write_checkpoint(Path(options.write_checkpoint), options.device, [*plain, *given])
        return
    if unknown := set(options.rows.split(",")) - set(ROWS):
        raise SystemExit(f"rows={options.rows}: {', '.join(unknown)} is unknown; there are {', '.join(ROWS)}.")
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    workload_words = workload_overrides(options)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="startup-") as temporary:
        folder = Path(temporary)
        trees = {"own": ROOT}
        if options.commit or options.peer:
            trees["peer"] = Path(options.peer).absolute() if options.peer else unpack(options.commit, folder)
        if "pretrained" in options.rows:
            write = [sys.executable, __file__, *sys.argv[1:], f"write_checkpoint={folder / 'checkpoint'}"]
            subprocess.run(write, check=True)
        results = {}
        for name in options.contenders.split(",") if options.contenders else trees:
            flags = tuned if options.tuned and name == "peer" else ()
            overrides = [*plain, *flags, *RUN, *workload_words, *given]
            results[name] = measure(name, trees[name], folder / name, options, overrides)
            content = {"words": sys.argv[1:], "results": results}
            (OUTPUTS / "startup.json").write_text(json.dumps(content, indent=1))
    if len(results) > 1:
        print(table(results))


if __name__ == "__main__":
    main()
