"""The whole of it can learn: eight pictures by heart, scored by the program that scores any run."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("choices", [(), ("head=dino", "loss=varifocal")], ids=["detr", "dino"])
def test_head_and_generated_answers_find_what_was_learned_by_heart(choices, tmp_path):
    folder, out = tmp_path / "overfit/by-heart", tmp_path / "scores"
    its = "experiment=overfit", "run=by-heart", "tracker=jsonl", f"outputs={tmp_path}", *choices
    subprocess.run([sys.executable, "-m", "bbu_train", *its], check=True)
    scored = f"run={folder}", "teachers=[0]", f"out={out}"
    subprocess.run([sys.executable, "-m", "bbu_train.evaluate", *scored], check=True)
    head, generated = json.loads((out / "table.json").read_text())["rows"]
    assert (head["route"], generated["route"]) == ("head", "generated")
    assert head["ap50"] >= 0.9
    assert generated["f1"] >= 0.9
