"""The files of a prediction: predictions.jsonl and a drawing of each picture."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from bbu_train.images.colors import ClassColors
from bbu_train.predict.routes import Predictor
from bbu_train.predict.show import draw_predictions, to_row
from bbu_train.runtime.file_names import short_name
from bbu_train.types.batch import Batch
from bbu_train.types.samples import Sample

PREDICTIONS = "predictions.jsonl"


def write(
    predictor: Predictor,
    prompts: Iterable[tuple[Sequence[Sample], Batch]],
    num_pictures: int,
    classes: Iterable[str],
    threshold: float,
    folder: Path,
) -> str:
    """Predict batch by batch, write each batch into `folder` when it is ready, and return a summary for the terminal.

    A drawing is named after its line of predictions.jsonl, counted from 0, and its picture; a long name is cut. All
    drawings share the colours of their classes; `classes` are those of the run's data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_written = num_malformed = num_boxes = 0
    seconds, colors = 0.0, ClassColors(classes)
    with (
        # A byte of a file name that is no UTF-8 becomes JSON's own escape, such as \udce9: nothing is lost.
        (folder / PREDICTIONS).open("w", encoding="utf-8", errors="backslashreplace") as file,
        tqdm(total=num_pictures, unit="picture") as progress,
    ):
        for samples, batch in prompts:
            start = time.perf_counter()
            results = predictor(samples, batch)
            seconds += time.perf_counter() - start
            for predictions in results:
                name = short_name(f"{num_written:05d}_{predictions.sample.student.path.stem}") + ".jpg"
                row = to_row(predictions, threshold)
                file.write(json.dumps(row | {"drawn": name}, ensure_ascii=False) + "\n")
                draw_predictions(predictions, threshold, colors).save(folder / name, quality=92)
                num_written += 1
                num_malformed += row.get("generated", {}).get("is_malformed", False)
                num_boxes += sum(len(row[route]["objects"]) for route in ("head", "generated") if route in row)
            file.flush()
            progress.update(len(results))
    summary = f"{num_pictures} pictures, {num_boxes} boxes, {seconds / num_pictures:.2f} s per picture"
    if "generated" in predictor.routes:
        summary += f"\n{num_malformed} of {num_pictures} generated answers are malformed or were cut off"
    return summary
