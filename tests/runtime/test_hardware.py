import os

import pytest

from bbu_train.runtime import hardware


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Eight cores, without a cgroup's quota and without SLURM."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    for name in ("SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def lines_of(monkeypatch, files):
    monkeypatch.setattr(hardware, "_lines", lambda file: files.get(str(file), "").splitlines())


def test_the_affinity_limits_the_cores(machine, monkeypatch):
    lines_of(monkeypatch, {})
    assert hardware.num_cores() == 8


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)]
)
def test_the_quota_of_a_cgroup_limits_the_cores_also_if_one_above_has_it(machine, monkeypatch, quota, cores):
    lines_of(monkeypatch, {"/proc/self/cgroup": "0::/job/step", f"{machine}/job/cpu.max": quota})
    assert hardware.num_cores() == cores


def test_the_quota_of_a_cgroup_of_version_1_limits_the_cores(machine, monkeypatch):
    folder = f"{machine}/cpu/job"
    files = {f"{folder}/cpu.cfs_quota_us": "300000", f"{folder}/cpu.cfs_period_us": "100000"}
    lines_of(monkeypatch, {"/proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/"} | files)
    assert hardware.num_cores() == 3
    lines_of(monkeypatch, {"/proc/self/cgroup": "4:cpu:/job"} | files | {f"{folder}/cpu.cfs_quota_us": "-1"})
    assert hardware.num_cores() == 8


def test_slurm_grants_cores_to_each_rank_and_torchrun_shares_those_of_the_machine(machine, monkeypatch):
    lines_of(monkeypatch, {})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (hardware.num_cores(), hardware.num_cores_of_rank()) == (8, 4)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert (hardware.num_cores(), hardware.num_cores_of_rank()) == (3, 3)


def test_cores_that_others_use_are_not_free(machine, monkeypatch):
    # Ticks: user, nice, system, idle, waiting for a disk, interrupts twice, stolen.
    before = {core: [100, 0, 0, 100, 0, 0, 0, 0] for core in range(8)}
    after = {core: [100, 0, 0, 105, 5, 0, 0, 0] for core in range(8)}  # ten idle ticks
    after |= {core: [108, 0, 1, 101, 0, 0, 0, 0] for core in (0, 3, 5)}
    answers = [before, after]
    monkeypatch.setattr(hardware, "_clock_ticks", lambda: answers.pop(0))
    assert hardware.num_free_cores() == 5


def test_where_the_load_does_not_show_all_cores_count_as_free(machine, monkeypatch):
    for ticks in ({}, {core: [0] * 8 for core in range(8)}):
        monkeypatch.setattr(hardware, "_clock_ticks", lambda ticks=ticks: ticks)
        assert hardware.num_free_cores() == 8


def test_a_machine_whose_gpus_are_hidden_has_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not hardware.has_gpu()


def test_a_core_that_goes_offline_or_counts_backwards_is_left_out(machine, monkeypatch):
    before = {core: [0, 0, 0, 10, 5, 0, 0, 0] for core in range(8)}
    after = {core: [0, 0, 0, 20, 5, 0, 0, 0] for core in range(7)} | {0: [0, 0, 0, 11, 4, 0, 0, 0]}
    answers = [before, after]
    monkeypatch.setattr(hardware, "_clock_ticks", lambda: answers.pop(0))
    assert hardware.num_free_cores() == 6


@pytest.mark.parametrize("granted", ["4(x2)", "4,2", ""])
def test_a_grant_that_is_no_number_is_left_out(machine, monkeypatch, granted):
    lines_of(monkeypatch, {})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert hardware.num_cores() == 8
