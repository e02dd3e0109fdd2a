"""The notebook of the first hour runs from top to bottom, with short runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ["steps=2", "schedule.num_warmup_steps=1", "eval_every=2", "tracker=jsonl", "threads=1"]

# A notebook's code cells share one namespace, and each ends with an expression that Jupyter would show.
RUN_CELLS = """\
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
names = {"__name__": "__main__"}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
"""


@pytest.mark.slow
def test_the_notebook_of_the_first_hour_runs_from_top_to_bottom(tmp_path):
    command = [sys.executable, "-c", RUN_CELLS, str(ROOT / "examples/first_hour.ipynb")]
    environment = os.environ | {"FIRST_HOUR": " ".join(SHORT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "constant boxes" in done.stdout
    assert {path.name for path in (tmp_path / "outputs/first_hour").iterdir()} == {"first", "half_batch", "compare"}
    assert (tmp_path / "outputs/first_hour/compare/index.html").exists()


def test_the_notebook_is_kept_without_outputs_and_its_cells_have_names():
    notebook = json.loads((ROOT / "examples/first_hour.ipynb").read_text(encoding="utf-8"))
    cells = notebook["cells"]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)
