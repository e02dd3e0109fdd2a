"""The memory that a job may still use is that of its tightest limit."""

import pytest

from bbu_train.runtime.host_memory import available_bytes

GIB = 1 << 30
FILES = {
    "proc/meminfo": f"MemTotal: {200 << 20} kB\nMemAvailable:   {100 << 20} kB\nHugePages_Total:   0\n",
    "proc/self/status": f"Name:\tpython\nVmRSS:\t {2 << 20} kB\n",
}
V2 = {
    "proc/self/cgroup": "0::/job/step\n",
    "sys/fs/cgroup/job/memory.max": f"{50 * GIB}\n",
    "sys/fs/cgroup/job/memory.current": f"{30 * GIB}\n",
    "sys/fs/cgroup/job/memory.stat": f"anon {10 * GIB}\ninactive_file {14 * GIB}\nactive_file {GIB}\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/on/the/host\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{40 * GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{30 * GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {5 * GIB}\ntotal_active_file 0\n",
}


@pytest.mark.parametrize(
    ("groups", "environment", "expected"),
    [
        ({}, {}, 100),
        (V2, {}, 35),
        (V1, {}, 15),
        (V2, {"SLURM_MEM_PER_NODE": "16384"}, 14),
        ({}, {"SLURM_MEM_PER_CPU": "4096", "SLURM_CPUS_ON_NODE": "8", "LOCAL_WORLD_SIZE": "4"}, 24),
        ({}, {"SLURM_MEM_PER_GPU": "20480", "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_ON_NODE": "8"}, 38),
        ({}, {"SLURM_MEM_PER_GPU": "20480"}, 100),
        ({}, {"SLURM_MEM_PER_NODE": "0"}, 100),
        (V1, {"SLURM_MEM_PER_NODE": "1024"}, 0),
        ({}, {"SLURM_MEM_PER_NODE": "4G"}, 100),
        ({"proc/meminfo": "MemTotal: 1 kB\n"}, {}, 0),
    ],
)
def test_the_least_limit_counts_and_the_page_cache_is_free(tmp_path, groups, environment, expected):
    for name, content in (FILES | groups).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_bytes(tmp_path, environment) == expected * GIB
