"""The default run learns: `make train` ends with a model that finds unseen objects."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_default_run_finds_unseen_parts_far_better_than_constant_boxes(tmp_path):
    words = "tracker=jsonl", "sweep=first", "run=run", f"outputs={tmp_path}"
    ended = subprocess.run([sys.executable, "-m", "bbu_train", *words], check=True, capture_output=True, text=True)
    folder = tmp_path / "first/run"
    scores = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [row["eval/ap50"] for row in scores if "eval/ap50" in row][-1]
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("eval/ap50 ")]
    assert found >= 0.6
    assert found >= 4 * float(line.split()[-1])
    assert (folder / "overlay.png").is_file()

    pictures = f"images={tmp_path}/data/synthetic/*/pictures/validation_*.jpg"
    predicted = f"run={folder}", pictures, f"out={tmp_path / 'predicted'}"
    subprocess.run([sys.executable, "-m", "bbu_train.predict", *predicted], check=True)
    lines = (tmp_path / "predicted/generated.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert sum(map(is_json, answers)) >= 0.95 * len(answers) > 40


def is_json(text):
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False
