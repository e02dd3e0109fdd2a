"""What a person looks at when a run has ended: a table, a plot of the losses, an overlay of boxes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bbu_train.images.overlay import overlay
from bbu_train.images.sheet import gallery as sheet
from bbu_train.images.sheet import titled
from bbu_train.metrics.constant_boxes import constant_predictions
from bbu_train.metrics.detection import detection_metrics
from bbu_train.reporting.loss_plot import plot_losses
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of

NUM_OVERLAYS = 6
GALLERY_SIZE = 900  # pixels of the longer side of a picture, so that many evaluations take little room
NUM_CONSTANT_BOXES = 100


def write_plots(folder: Path, found: Sequence[tuple[Picture, Prediction]], threshold: float) -> list[Path]:
    """Write losses.png, and overlay.png if anything was predicted, into the run's folder."""
    paths = [folder / "losses.png"]
    plot_losses(folder / "metrics.jsonl", paths[0])
    if found:
        overlays = [overlay(picture, prediction, threshold) for picture, prediction in found[:NUM_OVERLAYS]]
        paths.append(folder / "overlay.png")
        sheet(overlays, columns=3).save(paths[1])
    return paths


def write_gallery(
    folder: Path, step: int, found: Sequence[tuple[Picture, Prediction]], metrics: Mapping[str, float]
) -> list[Path]:
    """Write gallery/step-<step>.jpg into the run's folder, a sheet of what was found in these pictures, if any.

    Boxes from the threshold of the best F1 on; before anything is found, as many of the best as there are true ones.
    An evaluation that is done again writes the same file.
    """
    if not found:
        return []
    sheets, classes = [], {class_of(each.description) for picture, _ in found for each in picture.objects or ()}
    for picture, prediction in found:
        threshold = metrics.get("eval/f1_threshold", 0.5)
        if metrics.get("eval/f1") == 0:
            best = sorted(prediction.scores, reverse=True)[: len(picture.objects or ())]
            threshold = float(min(best, default=1))
        sheets.append(titled(overlay(picture, prediction, threshold, classes), picture.path.name))
        sheets[-1].thumbnail((GALLERY_SIZE, GALLERY_SIZE))
    names = {"eval/ap50": "AP50", "eval/f1": "F1"}
    scores = [f"{word} {metrics[name]:.3f}" for name, word in names.items() if name in metrics]
    path = folder / "gallery" / f"step-{step:08d}.jpg"
    path.parent.mkdir(exist_ok=True)
    title = ", ".join([f"step {step}", *scores])
    titled(sheet(sheets, columns=2), title).save(path, quality=90)
    return [path]


def summarize(
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
        constant = detection_metrics(pictures, constant_predictions(train_pictures, pictures, NUM_CONSTANT_BOXES, seed))
        lines += ["", f"{'validation':24}{'before':>12}{'after':>12}{'constant boxes':>18}"]
        for name in scored:
            values = float(evaluations[0][name]), float(evaluations[-1][name]), constant[name.removeprefix("eval/")]
            lines.append(f"{name:24}{values[0]:12.4f}{values[1]:12.4f}{values[2]:18.4f}")
    lines += ["", f"run     {folder}"]
    if mlflow_command:
        lines.append(f"MLflow  {mlflow_command}")
    return "\n".join(lines)
