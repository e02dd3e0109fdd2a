"""How much more memory this job may use on its machine."""

from collections.abc import Iterator, Mapping
from pathlib import Path

MEBIBYTE = 1 << 20


def available_bytes(root: Path, environment: Mapping[str, str]) -> int:
    """Return the least of what the machine has left, and what cgroups and SLURM leave to this job.

    `root` is / except in tests. Files in the page cache count as free, because the kernel drops them when it must.
    Return 0 if the machine does not say what it has left.
    """
    limits = [_read_table(root / "proc/meminfo").get("MemAvailable", 0) * 1024, *_cgroup_bytes(root)]
    if (slurm := _slurm_bytes(environment)) is not None:
        own = _read_table(root / "proc/self/status").get("VmRSS", 0) * 1024
        limits.append(slurm - own * int(environment.get("LOCAL_WORLD_SIZE", "1")))  # ranks are about equally large
    return max(0, min(limits))


def _cgroup_bytes(root: Path) -> Iterator[int]:
    """Yield what each memory limit leaves: of this process's cgroup and of those above, in versions 1 and 2."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage, files = (
                "sys/fs/cgroup",
                "memory.max",
                "memory.current",
                ("inactive_file", "active_file"),
            )
        elif "memory" in controllers.split(","):
            mount, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            files = ("total_inactive_file", "total_active_file")
        else:
            continue
        # In a container the path is that of the host and may be missing here; the mount's root is the container's.
        parts = Path(path.lstrip("/")).parts
        for length in range(len(parts) + 1):
            folder = root.joinpath(mount, *parts[:length])
            if (folder / limit).exists() and (bound := (folder / limit).read_text().strip()) != "max":
                table = _read_table(folder / "memory.stat")
                yield int(bound) - int((folder / usage).read_text()) + sum(table.get(name, 0) for name in files)


def _slurm_bytes(environment: Mapping[str, str]) -> int | None:
    """Return the memory of the job on this node, or None outside SLURM and where it has no limit (0).

    SLURM notes what was asked for: --mem, --mem-per-cpu or --mem-per-gpu, in MiB, one of which excludes the others.
    """
    units = {"CPU": "SLURM_CPUS_ON_NODE", "GPU": "SLURM_GPUS_ON_NODE"}
    grants = [_number(environment, "SLURM_MEM_PER_NODE")]
    grants += [_number(environment, f"SLURM_MEM_PER_{unit}") * _number(environment, key) for unit, key in units.items()]
    return next((grant * MEBIBYTE for grant in grants if grant), None)


def _number(environment: Mapping[str, str], name: str) -> int:
    """Return the whole number of a variable; 0 if it is not set, or holds something else."""
    return int(text) if (text := environment.get(name, "")).isdigit() else 0


def _read_table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number, such as `MemAvailable:   1234 kB`. Other lines are left out.

    A file that cannot be read has none.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError:
        lines = []
    rows = (line.replace(":", " ").split() for line in lines)
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
