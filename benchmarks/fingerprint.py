"""The time that the fingerprint of a JSONL data set takes: read for the first time, and from its cache.

    python benchmarks/fingerprint.py [num_samples=100000] [objects=11] [folder=outputs/benchmarks/fingerprint]

Writes a data set of so many lines, each of its own picture file of 20,000 bytes, and measures in processes of their
own: seconds of a core, and peak memory. Beside them stand costs that cannot be avoided: opening every picture and
reading the same part of it, which comes first and so leaves the pictures in memory; and asking for the size of every
picture.
"""

import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bbu_train.runs.data_fingerprint import fingerprint
from bbu_train.runs.picture_hashes import START_BYTES

PICTURE_BYTES = 20_000


def write_data(root: Path, num_samples: int, num_objects: int) -> None:
    objects = [
        {"bbox_2d": [i, 2 * i, i + 100, 2 * i + 50], "desc": "screw/connected/floor screw"} for i in range(num_objects)
    ]
    with (root / "train.jsonl").open("w") as file:
        for number in range(num_samples):
            name = f"pictures/{number % 1000:03d}/{number:07d}.jpg"
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(number.to_bytes(8, "big"))
            os.truncate(path, PICTURE_BYTES)  # the rest is read as zeros and takes no room on disk
            file.write(json.dumps({"images": [name], "objects": objects}) + "\n")
    (root / "validation.jsonl").write_text(json.dumps({"images": ["pictures/000/0000000.jpg"], "objects": []}) + "\n")


def pictures(root: Path) -> list[str]:
    with (root / "train.jsonl").open() as file:
        return [f"{root}/{json.loads(line)['images'][0]}" for line in file]


def read_all(root: Path) -> None:
    for path in pictures(root):
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (as fast as Python can)
            file.read(START_BYTES)


def stat_all(root: Path) -> None:
    for path in pictures(root):
        os.stat(path)  # noqa: PTH116


def config(root: Path) -> DictConfig:
    data = {
        "_target_": "bbu_train.data.jsonl.load",
        "root": str(root),
        "train": "train.jsonl",
        "validation": "validation.jsonl",
    }
    return OmegaConf.create({"outputs": str(root.parent / "outputs"), "data": data})


def measure(task: Callable[[Path], object], root: Path, results: multiprocessing.Queue) -> None:
    before, began = time.process_time(), time.perf_counter()
    task(root)
    seconds, core_seconds = time.perf_counter() - began, time.process_time() - before
    results.put((core_seconds, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def first(root: Path) -> None:
    fingerprint(config(root))


TASKS = {
    f"peer: open every picture, read {START_BYTES} bytes": read_all,
    "first time": first,
    "from the cache": first,
    "peer: parse every line, ask for every size": stat_all,
}


def main() -> None:
    defaults = {"num_samples": 100_000, "objects": 11, "folder": "outputs/benchmarks/fingerprint"}
    options = OmegaConf.merge(defaults, OmegaConf.from_cli(sys.argv[1:]))
    folder = Path(options.folder)
    (folder / "data").mkdir(parents=True)
    processes, results = multiprocessing.get_context("spawn"), []
    try:
        write_data(folder / "data", options.num_samples, options.objects)
        print("| what | core seconds | seconds | samples/s of a core | peak MiB |\n|---|---|---|---|---|")
        for name, task in TASKS.items():
            queue = processes.Queue()
            process = processes.Process(target=measure, args=(task, folder / "data", queue))
            process.start()
            core, seconds, mib = queue.get()
            process.join()
            rate = options.num_samples / core
            print(f"| {name} | {core:.2f} | {seconds:.2f} | {rate:,.0f} | {mib:.0f} |", flush=True)
            results.append({"what": name, "core_seconds": core, "seconds": seconds, "peak_mib": mib})
        (folder.parent / "fingerprint.json").write_text(json.dumps(results))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
