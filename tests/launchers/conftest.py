"""A process for a job, and a real SLURM cluster, if Debian's packages of SLURM are installed."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from slurm_sweeps import Sweep

from bbu_train.runtime import preemption

SCRIPT = Path(__file__).with_name("slurm_cluster.sh")
TESTS = SCRIPT.parents[1]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
COMPOSED: dict[tuple[Any, ...], DictConfig] = {}


@pytest.fixture(scope="module", autouse=True)
def _compose_once():
    """Let Hydra compose each config once for all tests of launchers: that takes longer than most of these tests."""
    load = ConfigLoaderImpl.load_configuration

    def load_once(
        self: ConfigLoaderImpl, config_name: str, overrides: list[str], run_mode: RunMode, **options: Any
    ) -> DictConfig:
        paths = tuple(element.path for element in self.config_search_path.get_path())
        key = (paths, config_name, tuple(overrides), run_mode, tuple(sorted(options.items())))
        if key not in COMPOSED:
            COMPOSED[key] = load(self, config_name, overrides, run_mode, **options)
        return deepcopy(COMPOSED[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigLoaderImpl, "load_configuration", load_once)
        yield


@pytest.fixture(scope="session")
def cluster():
    """The environment in which commands find the cluster, which slurm_cluster.sh starts."""
    if any(shutil.which(name) is None for name in PROGRAMS):
        pytest.skip("no SLURM here: apt-get install munge slurmctld slurmd slurm-client")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed")
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # sockets need a short path that all users may enter
    folder.chmod(0o755)
    command = ["bash", str(SCRIPT), str(folder), str(20000 + os.getpid() % 10000 * 3)]
    try:
        subprocess.run([*command, "up"], check=True, timeout=120)
        path = f"{folder}/bin:{os.environ['PATH']}"
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        yield {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": path, "PYTHONPATH": paths}
    finally:
        subprocess.run([*command, "down"], check=False, timeout=120)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sweep(cluster, tmp_path):
    return Sweep(cluster, tmp_path)


@pytest.fixture
def own_process(monkeypatch, tmp_path):
    """Restore what a job changes in its process: signal handlers, Hydra's config, sys.argv, working directory."""
    handlers = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    hydra = HydraConfig.instance().cfg
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield
    HydraConfig.instance().cfg = hydra
    for number, handler in handlers.items():
        signal.signal(number, handler)
