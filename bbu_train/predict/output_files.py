"""The files of a prediction: predictions.jsonl, that of a second route, and a drawing of each picture."""

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bbu_train.images.colors import ClassColors
from bbu_train.predict.routes import Predictor
from bbu_train.predict.show import draw_predictions, to_row
from bbu_train.runtime.file_names import short_name
from bbu_train.runtime.progress_bar import ProgressBar
from bbu_train.types.batch import Batch
from bbu_train.types.samples import Sample

PREDICTIONS = "predictions.jsonl"


def names(routes: Sequence[str]) -> dict[str, str]:
    """Return the file of each route: PREDICTIONS for the first one, and one that is named after a second."""
    return {route: f"{route}.jsonl" if index else PREDICTIONS for index, route in enumerate(routes)}


def write(
    predictor: Predictor,
    prompts: Iterable[tuple[Sequence[Sample], Batch]],
    num_pictures: int,
    classes: Iterable[str],
    threshold: float,
    folder: Path,
) -> str:
    """Predict batch by batch, write each batch into `folder` when it is ready, and return a summary for the terminal.

    Each route has a file of its own (`names`). A drawing shows both; it is named after the line of its picture in these
    files, counted from 0, and after the picture; a long name is cut. All drawings share the colours of their classes;
    `classes` are those of the run's data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_written = num_malformed = num_boxes = 0
    seconds, colors = 0.0, ClassColors(classes)
    with ExitStack() as open_files, ProgressBar(num_pictures, "predicting") as progress:
        # A byte of a file name that is no UTF-8 becomes JSON's own escape, such as \udce9: nothing is lost.
        files = {
            route: open_files.enter_context((folder / name).open("w", encoding="utf-8", errors="backslashreplace"))
            for route, name in names(predictor.routes).items()
        }
        for samples, batch in prompts:
            start = time.perf_counter()
            results = predictor(samples, batch)
            seconds += time.perf_counter() - start
            for predictions in results:
                name = short_name(f"{num_written:05d}_{predictions.sample.student.path.stem}") + ".jpg"
                for route, file in files.items():
                    row = to_row(predictions, route, threshold) | {"drawn": name}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    num_malformed += row.get("is_malformed", False)
                    num_boxes += len(row["objects"]) + len(row["unusable"])
                draw_predictions(predictions, threshold, colors).save(folder / name, quality=92)
                num_written += 1
            for file in files.values():
                file.flush()
            progress.update(len(results))
    summary = f"{num_pictures} pictures, {num_boxes} boxes, {seconds / num_pictures:.2f} s per picture"
    if "generated" in predictor.routes:
        summary += f"\n{num_malformed} of {num_pictures} generated answers are malformed or were cut off"
    return summary
