"""The results that a person looks at: a gallery per evaluation; plots and a summary when the run has ended."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from bbu_train.images.colors import ClassColors
from bbu_train.images.overlay import prediction_panel, prediction_sheet
from bbu_train.metrics.constant_boxes import constant_predictions
from bbu_train.metrics.detection import detection_metrics
from bbu_train.reporting.loss_plot import plot_losses
from bbu_train.reporting.rate_plot import plot_rates
from bbu_train.runs import folder as run_folder
from bbu_train.runtime.file_names import printable
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture

NUM_OVERLAYS = 6
NUM_CONSTANT_BOXES = 100


def write_plots(
    folder: Path,
    predictions: Sequence[tuple[Picture, Prediction]],
    metrics: Mapping[str, float],
    weights: Mapping[str, float],
) -> list[Path]:
    """Write losses.png and rates.png into the run's folder, and overlay.png if there are predictions. Return the paths.

    `predictions` are those of all validation pictures; the first NUM_OVERLAYS are drawn, as in a gallery. `metrics` are
    those of their evaluation. `weights` are the weights of the losses in the total.
    """
    paths = [folder / "losses.png", folder / "rates.png"]
    plot_losses(folder / "metrics.jsonl", paths[0], weights)
    plot_rates(folder / "metrics.jsonl", paths[1])
    if predictions:
        paths.append(folder / "overlay.png")
        title = _title("Validation pictures", metrics)
        _sheet(folder, predictions[:NUM_OVERLAYS], metrics, title).save(paths[-1])
    return paths


def write_gallery(
    folder: Path,
    step: int,
    predictions: Sequence[tuple[Picture, Prediction]],
    num_pictures: int,
    metrics: Mapping[str, float],
) -> list[Path]:
    """Write gallery/step-<step>.jpg, a sheet of pictures with their predicted boxes. Return its path, if written.

    `predictions` are those of all validation pictures; the first `num_pictures` are drawn. A repeated evaluation of the
    step overwrites the file.
    """
    if not predictions or not num_pictures:
        return []
    path = folder / "gallery" / f"step-{step:08d}.jpg"
    path.parent.mkdir(exist_ok=True)
    sheet = _sheet(folder, predictions[:num_pictures], metrics, _title(f"Step {step}", metrics))
    sheet.save(path, quality=90)
    return [path]


def _title(beginning: str, metrics: Mapping[str, float]) -> str:
    labels = {"eval/ap50": "AP50", "eval/f1": "F1"}
    return ", ".join(
        [beginning, *(f"{label} {metrics[name]:.3f}" for name, label in labels.items() if name in metrics)]
    )


def _sheet(
    folder: Path, predictions: Sequence[tuple[Picture, Prediction]], metrics: Mapping[str, float], title: str
) -> Image.Image:
    """Draw the predicted boxes whose scores reach the threshold of the best F1.

    While F1 is 0, each picture shows as many of its best-scored boxes as it has objects. The classes of the run's data
    have the same colours in all sheets and in `predict`.
    """
    colors, panels = ClassColors(run_folder.classes(folder)), []
    for picture, prediction in predictions:
        threshold = metrics.get("eval/f1_threshold", 0.5)
        if metrics.get("eval/f1") == 0:
            best_scores = sorted(prediction.scores, reverse=True)[: len(picture.objects or ())]
            threshold = float(min(best_scores, default=1))
        panels.append(prediction_panel(picture, prediction, threshold, colors, printable(picture.path.name)))
    return prediction_sheet(panels, colors, title)


def summarize(
    folder: Path,
    train_pictures: Sequence[Picture],
    pictures: Sequence[Picture],
    seed: int,
    notes: Mapping[str, str | None],
    mlflow_command: str | None,
) -> str:
    """Return the text that ends a run: first and last losses, validation scores, and where the results are.

    `notes` are lines by their label, such as "time"; one that is None is left out. The scores stand beside those of
    constant boxes, a baseline that does not look at the picture.
    """
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    series = _values_by_name(rows)
    losses = [name for name in series if name.startswith("loss/") and name != "loss/total"]
    lines = ["", f"{'':24}{'first':>12}{'last':>12}"]
    # A step without teachers, say, has no loss/teacher_lm: its first value is that of the first step that has one.
    lines += [
        f"{name:24}{series[name][0]:12.4f}{series[name][-1]:12.4f}"
        for name in (*losses, "loss/total")
        if name in series
    ]
    names = ("ap", "ap50", "agnostic_ap50", "f1") if pictures else ()  # none: this process evaluated nothing
    scores = [f"eval/{name}" for name in names if f"eval/{name}" in series]
    if scores:
        constant = detection_metrics(pictures, constant_predictions(train_pictures, pictures, NUM_CONSTANT_BOXES, seed))
        lines += ["", f"{'validation':24}{'before':>12}{'after':>12}{'constant boxes':>18}"]
        for name in scores:
            values = series[name][0], series[name][-1], constant[name.removeprefix("eval/")]
            lines.append(f"{name:24}{values[0]:12.4f}{values[1]:12.4f}{values[2]:18.4f}")
    lines += ["", *(f"{label:8}{note}" for label, note in notes.items() if note), f"run     {folder}"]
    if mlflow_command:
        lines.append("MLflow  " + mlflow_command.replace("\n", "\n        "))
    return "\n".join(lines)


def _values_by_name(rows: Sequence[Mapping[str, float | str]]) -> dict[str, list[float]]:
    """Return the values of each metric over the rows that have it. The texts "NaN" and "Infinity" are numbers too."""
    series: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            series.setdefault(name, []).append(float(value))
    return series
