"""A run whose graphs were compiled before: by a run on this node, or by one on another node with the same outputs."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from whole_runs import command

CLOCK = Path(__file__).parents[1] / "benchmarks/startup_clock.py"
COMPILED = ["model.compile=true", "engine.gradient_checkpointing=selective", "steps=100", "save_every=null"]


def counts(outputs, run, caches):
    """Return what torch counted until the end of the second step of a run in a new process."""
    result = outputs / f"{run}.json"
    _, *words = command(outputs, run, *COMPILED)
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(caches), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, CLOCK, str(time.monotonic()), str(result), "leave", *words],
        env=environment | {"PYTHONPATH": str(CLOCK.parents[1])},
        stdout=subprocess.DEVNULL,
        check=False,  # a run that leaves ends with 130
    )
    parts = json.loads(result.read_text())["counts"].values()
    return sum((Counter(part) for part in parts), Counter())


@pytest.mark.slow
def test_no_graph_is_compiled_twice_on_a_node_or_in_an_outputs_folder(tmp_path):
    first = counts(tmp_path, "first", tmp_path / "node")
    num_graphs = first["aot_autograd autograd_cache_saved"]
    assert num_graphs == first["aot_autograd autograd_cache_miss"] > 3
    for run, caches in (("second", "node"), ("elsewhere", "other-node")):
        again = counts(tmp_path, run, tmp_path / caches)
        assert again["stats unique_graphs"] == again["aot_autograd autograd_cache_hit"] == num_graphs
        for kind in ("aot_autograd autograd_cache", "inductor fxgraph_cache"):
            assert again[f"{kind}_miss"] == again[f"{kind}_bypass"] == 0
