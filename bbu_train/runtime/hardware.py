"""What this machine gives to a process: processor cores, and whether there is a GPU. No torch is needed here."""

import importlib.metadata
import math
import os
import re
import time
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
SAMPLE_SECONDS = 0.1
"""How long `num_free_cores` looks at the machine. The kernel counts in hundredths of a second."""
MIN_IDLE_SHARE = 0.5
"""A core counts as free if it is idle for more than this share of the time."""
IDLE = slice(3, 5)
"""The states in which a core is free, in the order of /proc/stat: idle, and waiting for a disk."""


def has_gpu() -> bool:
    """Whether torch can be expected to find an NVIDIA GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    is_cpu_build = importlib.metadata.version("torch").endswith("+cpu")
    return not is_cpu_build and any(Path("/dev").glob("nvidia[0-9]*"))


def num_cores() -> int:
    """Return how many cores this process may use: the least of its affinity, its cgroup's quota and SLURM's grant."""
    limits = [float(len(os.sched_getaffinity(0))), _cgroup_quota()]
    if (granted := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():
        limits.append(float(granted))
    return max(1, math.floor(min(limits)))


def num_cores_of_rank() -> int:
    """Return this process's share of `num_cores`, which the other ranks on this machine use too.

    SLURM grants cores to each rank, torchrun shares those of one machine.
    """
    is_granted = "SLURM_CPUS_PER_TASK" in os.environ
    num_ranks = 1 if is_granted else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, num_cores() // num_ranks)


def num_free_cores() -> int:
    """Return how many of the cores of this rank no other process is using now, at least 1."""
    before = _clock_ticks()
    time.sleep(SAMPLE_SECONDS)
    after = _clock_ticks()
    shared = os.sched_getaffinity(0) & before.keys() & after.keys()
    spent = [[new - old for old, new in zip(before[core], after[core], strict=True)] for core in shared]
    own = [ticks for ticks in spent if sum(ticks) > 0]  # the kernel's count of waiting may go back
    shares = [sum(ticks[IDLE]) / sum(ticks) for ticks in own]
    if not shares:  # a container that hides /proc/stat
        return num_cores_of_rank()
    return max(1, min(num_cores_of_rank(), sum(share > MIN_IDLE_SHARE for share in shares)))


def _cgroup_quota() -> float:
    """Return the processor seconds a second that the cgroup of this process and those above it allow."""
    quotas = [math.inf]
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            folder = CGROUP / path.lstrip("/")
            quotas += [_quota_of_version_2(each / "cpu.max") for each in (folder, *folder.parents)]
        elif "cpu" in controllers.split(","):
            folder = CGROUP / "cpu" / path.lstrip("/")
            quotas += [_quota_of_version_1(each) for each in (folder, *folder.parents)]
    return min(quotas)


def _quota_of_version_2(file: Path) -> float:
    words = " ".join(_lines(file)).split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else math.inf


def _quota_of_version_1(folder: Path) -> float:
    quota, period = (" ".join(_lines(folder / f"cpu.cfs_{name}_us")).strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota and period and int(quota) > 0 else math.inf


def _clock_ticks() -> dict[int, list[int]]:
    """Return the clock ticks that each core of the machine has spent in each state since it started (`man proc`)."""
    words = [line.split() for line in _lines(Path("/proc/stat"))]
    return {int(name[3:]): [*map(int, counts[:8])] for name, *counts in words if re.fullmatch(r"cpu\d+", name)}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
