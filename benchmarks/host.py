"""What the host costs, on a CPU: start-up, the loop, reading and laying out of data, tracking. As ratios to a peer.

    python benchmarks/host.py [rounds=15] [parts=start,data,loop,tracker]

Each figure stands beside what cannot be avoided or what others pay, measured in turns in one run. Prints a table and
writes outputs/benchmarks/host.json. Needs no GPU; made data are drawn first.
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

# Threads that spin while they wait take the cores from everybody else. torch reads it when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import beside
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
IMPORTS = "import torch; from transformers import Qwen2_5_VLForConditionalGeneration"
RUN = ("-m", "bbu_train", "sweep=host", "eval_every=null", "save_every=null")
NUM_STEPS, NUM_VALUES, STEP_SECONDS = 600, 40, 0.02
Rows = list[dict[str, object]]


def command(*arguments: str) -> Callable[[], None]:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def first_step(outputs: Path, *overrides: str) -> Callable[[], None]:
    """Starts a run and ends it when its first step is in metrics.jsonl."""

    def until_logged() -> None:
        name = f"first-{time.time_ns()}"
        log = outputs / "host" / name / "metrics.jsonl"
        arguments = [sys.executable, *RUN, f"outputs={outputs}", f"run={name}", *overrides]
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (log.exists() and log.stat().st_size):
                assert process.poll() is None, f"{' '.join(arguments)} ended before its first step"
                time.sleep(0.002)
            process.kill()

    return until_logged


def start(outputs: Path, num_rounds: int) -> Rows:
    peers = {"import hydra": command("-c", "import hydra"), "import torch": command("-c", "import torch")}
    ours = {"--help": command("-m", "bbu_train", "--help"), "--cfg job": command("-m", "bbu_train", "--cfg", "job")}
    seconds = beside.wall(ours | peers, num_rounds)
    rows = [beside.row(name, seconds, name, peer) for name in ours for peer in peers]
    ours = {f"first step, tracker={name}": first_step(outputs, f"tracker={name}") for name in ("jsonl", "mlflow")}
    peer = "import torch and the model's class"
    seconds = beside.wall(ours | {peer: command("-c", IMPORTS)}, max(2, num_rounds // 4))
    return rows + [beside.row(name, seconds, name, peer) for name in ours]


def data(outputs: Path, num_rounds: int) -> Rows:
    import host_data

    return host_data.measure(outputs, num_rounds)


def loop(outputs: Path, num_rounds: int) -> Rows:
    import host_loop

    return [host_loop.measure(str(outputs), tracker, 6 * num_rounds) for tracker in ("jsonl", "mlflow")]


def tracker(outputs: Path, _: int) -> Rows:
    """Time on the training thread, of steps in which torch computes for 20 ms, beside a call of MLflow at each."""
    import torch
    from mlflow.entities import Metric

    torch.set_num_threads(1)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[f"outputs={outputs}", "sweep=host", f"run=tracker-{time.time_ns()}"])
    named = instantiate(cfg.tracker, _convert_="all")
    trackers = named.values()
    for each in trackers:
        each.open({}, 0)
    ours, theirs, matrix = [], [], torch.randn(256, 256)
    for step in range(1, NUM_STEPS + 1):
        until = time.perf_counter() + STEP_SECONDS
        while time.perf_counter() < until:
            matrix @ matrix
        row = {f"loss/of_some_name_{i}": 1 / (step + i) for i in range(NUM_VALUES)}
        began = time.perf_counter()
        for each in trackers:
            each.log(step, row)
        ours.append(time.perf_counter() - began)
    for each in trackers:
        each.close("done")
    stored = named["mlflow"].stored
    for step in range(1, NUM_STEPS // 10 + 1):
        metrics = [Metric(f"a_call/name_{i}", 1 / (step + i), 0, step) for i in range(NUM_VALUES)]
        began = time.perf_counter()
        stored.client.log_batch(stored.run_id, metrics=metrics)
        theirs.append(time.perf_counter() - began)
    mine, peer = sum(ours) / len(ours), sum(theirs) / len(theirs)
    what = f"trackers, a step of {NUM_VALUES} values (at most {1e3 * max(ours):.1f} ms)"
    return [{"what": what, "seconds": mine, "peer": "log_batch", "peer_seconds": peer, "ratio": mine / peer}]


PARTS = {"start": start, "data": data, "loop": loop, "tracker": tracker}


def main() -> None:
    given = OmegaConf.merge({"rounds": 15, "parts": ",".join(PARTS)}, OmegaConf.from_cli(sys.argv[1:]))
    path = Path("outputs/benchmarks/host.json").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| what | ms | peer | ms | ratio |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as outputs:
        first_step(Path(outputs))()  # draws the made data and makes the store
        for part in given.parts.split(","):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(PARTS[part], Path(outputs), given.rounds).result()
            for r in found:
                cells = f"{1e3 * r['seconds']:.3f} | {r['peer']} | {1e3 * r['peer_seconds']:.3f} | {r['ratio']:.3f}"
                print(f"| {r['what']} | {cells} |", flush=True)
            rows += found
            path.write_text(json.dumps({"rows": rows} | OmegaConf.to_container(given)))


if __name__ == "__main__":
    main()
