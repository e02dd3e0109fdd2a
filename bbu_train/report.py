"""What a person looks at when a run has ended: a table, a plot of the losses, an overlay of boxes."""

import json
from collections.abc import Sequence
from pathlib import Path

from bbu_train import drawing
from bbu_train.constant_boxes import constant_predictions
from bbu_train.scoring import Prediction, score
from bbu_train.types import Picture

NUM_OVERLAYS = 6
NUM_CONSTANT_BOXES = 100


def draw(folder: Path, found: Sequence[tuple[Picture, Prediction]], threshold: float) -> list[Path]:
    """Write losses.png, and overlay.png if anything was predicted, into the run's folder."""
    paths = [folder / "losses.png"]
    drawing.plot_losses(folder / "metrics.jsonl", paths[0])
    if found:
        overlays = [drawing.overlay(picture, prediction, threshold) for picture, prediction in found[:NUM_OVERLAYS]]
        paths.append(folder / "overlay.png")
        drawing.gallery(overlays, columns=3).save(paths[1])
    return paths


def table(
    folder: Path, train_pictures: Sequence[Picture], pictures: Sequence[Picture], seed: int, mlflow_command: str | None
) -> str:
    """Losses first and last, average precision before and after beside constant boxes, and where everything lies."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "loss/total" in row]
    evaluations = [row for row in rows if "eval/loss/total" in row]
    lines = ["", f"{'':24}{'first':>12}{'last':>12}"]
    names = [name for name in training[0] if name.startswith("loss/")]
    lines += [f"{name:24}{float(training[0][name]):12.4f}{float(training[-1][name]):12.4f}" for name in names]
    names = ("eval/ap", "eval/ap50", "eval/agnostic_ap50", "eval/f1")
    scored = [name for name in names if evaluations and name in evaluations[-1]]
    if scored:
        constant = score(pictures, constant_predictions(train_pictures, pictures, NUM_CONSTANT_BOXES, seed))
        lines += ["", f"{'validation':24}{'before':>12}{'after':>12}{'constant boxes':>18}"]
        for name in scored:
            values = float(evaluations[0][name]), float(evaluations[-1][name]), constant[name.removeprefix("eval/")]
            lines.append(f"{name:24}{values[0]:12.4f}{values[1]:12.4f}{values[2]:18.4f}")
    lines += ["", f"run     {folder}"]
    if mlflow_command:
        lines.append(f"MLflow  {mlflow_command}")
    return "\n".join(lines)
