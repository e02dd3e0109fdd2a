"""What the host costs on a CPU: start-up, data loading, the training loop and tracking, each as a ratio to a peer.

    python benchmarks/host.py [rounds=15] [parts=start,data,loop,tracker]

Each figure stands next to a cost that cannot be avoided, or to the usual way of doing it; both are measured in turns in
one run. Prints a table and writes outputs/benchmarks/host.json. Needs no GPU. Draws synthetic images first.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# Threads that spin while they wait would slow down all other processes. torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import timing
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bbu_train.cli import arguments

ROOT = Path(__file__).parents[1]
IMPORTS = "import torch; from transformers import Qwen2_5_VLForConditionalGeneration"
RUN = ("-m", "bbu_train", "sweep=host", "eval_every=null", "save_every=null")
NUM_STEPS, NUM_VALUES, STEP_SECONDS = 600, 40, 0.02
Rows = list[dict[str, object]]


def command(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def first_step(outputs: Path, *overrides: str) -> Callable[[], None]:
    """Return a function that starts a run and kills it when its first step is in metrics.jsonl."""

    def run_until_logged() -> None:
        name = f"first-{time.time_ns()}"
        log = outputs / "host" / name / "metrics.jsonl"
        arguments = [sys.executable, *RUN, f"outputs={outputs}", f"run={name}", *overrides]
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (log.exists() and log.stat().st_size):
                assert process.poll() is None, f"{' '.join(arguments)} ended before its first step"
                time.sleep(0.002)
            process.kill()

    return run_until_logged


def start(outputs: Path, num_rounds: int) -> Rows:
    peers = {"import hydra": command("-c", "import hydra"), "import torch": command("-c", "import torch")}
    commands = {"--help": command("-m", "bbu_train", "--help"), "--cfg job": command("-m", "bbu_train", "--cfg", "job")}
    seconds = timing.wall_seconds(commands | peers, num_rounds)
    rows = [timing.compare(name, seconds, name, peer) for name in commands for peer in peers]
    runs = {f"first step, tracker={name}": first_step(outputs, f"tracker={name}") for name in ("jsonl", "mlflow")}
    peer = "import torch and the model's class"
    seconds = timing.wall_seconds(runs | {peer: command("-c", IMPORTS)}, max(2, num_rounds // 4))
    return rows + [timing.compare(name, seconds, name, peer) for name in runs]


def data(outputs: Path, num_rounds: int) -> Rows:
    import host_data

    return host_data.measure(outputs, num_rounds)


def loop(outputs: Path, num_rounds: int) -> Rows:
    import host_loop

    return [host_loop.measure(str(outputs), tracker, 6 * num_rounds) for tracker in ("jsonl", "mlflow")]


def tracker(outputs: Path, _: int) -> Rows:
    """Time on the training thread for logging a step, with steps in which torch computes for 20 ms.

    The peer calls MLflow's `log_batch` at every step.
    """
    import torch
    from mlflow.entities import Metric

    torch.set_num_threads(1)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[f"outputs={outputs}", "sweep=host", f"run=tracker-{time.time_ns()}"])
    named = instantiate(cfg.tracker, _convert_="all")
    trackers = named.values()
    for each in trackers:
        each.open({}, 0)
    seconds, peer_seconds, matrix = [], [], torch.randn(256, 256)
    for step in range(1, NUM_STEPS + 1):
        until = time.perf_counter() + STEP_SECONDS
        while time.perf_counter() < until:
            matrix @ matrix
        row = {f"loss/of_some_name_{i}": 1 / (step + i) for i in range(NUM_VALUES)}
        start = time.perf_counter()
        for each in trackers:
            each.log(step, row)
        seconds.append(time.perf_counter() - start)
    for each in trackers:
        each.close("done")
    stored = named["mlflow"].stored
    for step in range(1, NUM_STEPS // 10 + 1):
        metrics = [Metric(f"a_call/name_{i}", 1 / (step + i), 0, step) for i in range(NUM_VALUES)]
        start = time.perf_counter()
        stored.client.log_batch(stored.run_id, metrics=metrics)
        peer_seconds.append(time.perf_counter() - start)
    mean, peer_mean = sum(seconds) / len(seconds), sum(peer_seconds) / len(peer_seconds)
    what = f"both trackers, the {NUM_VALUES} values of a step (mean; the slowest step took {1e3 * max(seconds):.1f} ms)"
    peer = "log_batch at each step"
    return [{"what": what, "seconds": mean, "peer": peer, "peer_seconds": peer_mean, "ratio": mean / peer_mean}]


PARTS = {"start": start, "data": data, "loop": loop, "tracker": tracker}


def main() -> None:
    options = arguments.parse(sys.argv[1:], {"rounds": 15, "parts": ",".join(PARTS)})
    path = Path("outputs/benchmarks/host.json").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| what | ms | peer | peer ms | ratio |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as outputs:
        first_step(Path(outputs))()  # draws the synthetic images and creates the MLflow store
        for part in options.parts.split(","):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                part_rows = process.submit(PARTS[part], Path(outputs), options.rounds).result()
            for row in part_rows:
                times = f"{1e3 * row['seconds']:.3f} | {row['peer']} | {1e3 * row['peer_seconds']:.3f}"
                print(f"| {row['what']} | {times} | {row['ratio']:.3f} |", flush=True)
            rows += part_rows
            path.write_text(json.dumps({"rows": rows} | OmegaConf.to_container(options)))


if __name__ == "__main__":
    main()
