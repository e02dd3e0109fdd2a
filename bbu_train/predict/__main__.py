"""`python -m bbu_train.predict run=<folder> images=<pictures> key=value ...`: what a trained model finds."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from bbu_train.cli import arguments
from bbu_train.ops.numbers import is_number
from bbu_train.runs.config_keys import refuse
from bbu_train.runtime import logs

USAGE = """\
python -m bbu_train.predict run=<run folder> images=<file, folder or 'glob'> [key=value ...]

Finds and describes what is in pictures, by both routes: the head's boxes, and the language model's written JSON.
Writes predictions.jsonl, a line a picture, and each picture with its boxes drawn, all in pixels of the upright
original. Pictures of the run's own data show their true boxes, too.

  run             folder of the run, such as outputs/default/20260101-120000-abcdef01
  images          a picture, a folder of them, or a pattern in quotes, such as '/data/**/*.jpg'
  checkpoint      best (the default), last, or a step
  route           both (the default), head or generated
  teachers        examples before each picture, drawn from the run's training pictures as in validation; default 0
  threshold       least score of the head's boxes; default: that of the checkpoint's best F1, else 0.5
  max_new_tokens  of a written answer, about 28 an object; default 2048. A longer answer is cut off, and what can be
                  read of it is kept
  max_caption_tokens  of the description of one of the head's boxes; default 64
  batch_size      pictures at once; default 8
  num_workers     processes that read pictures ahead; default: as many as the run had
  truth           true (the default): look for the true boxes in the run's data; false: do not read it
  out             a new folder for the result; default <run folder>/predictions/<time>
"""
DEFAULTS = {
    **{"run": None, "images": None, "checkpoint": "best", "route": "both", "teachers": 0, "threshold": None},
    **{
        "max_new_tokens": 2048,
        "max_caption_tokens": 64,
        "batch_size": 8,
        "num_workers": None,
        "truth": True,
        "out": None,
    },
}
PATHS = ("run", "images", "out")
PREDICTIONS = "predictions.jsonl"


def main(words: Sequence[str]) -> int:
    return arguments.call(lambda given: predict(_settled(given)), words, USAGE, DEFAULTS, PATHS)


def _settled(given: DictConfig) -> DictConfig:
    """What can be known without a look at any file."""
    problems = arguments.absent(given, {"run": "a run's folder", "images": "what to look at"})
    problems += arguments.wrong_choices(given, {"route": ("both", "head", "generated")})
    problems += arguments.wrong_checkpoint(given.checkpoint)
    least = {"teachers": 0, "max_new_tokens": 1, "max_caption_tokens": 1, "batch_size": 1}
    problems += arguments.wrong_counts(given, least)
    if given.threshold is not None and not (is_number(given.threshold) and 0 <= given.threshold <= 1):
        problems.append(f"threshold={given.threshold}: threshold is a number from 0 to 1.")
    if given.num_workers is not None:
        problems += arguments.wrong_counts(given, {"num_workers": 0})
    refuse(problems)
    given.out = given.out or str(Path(given.run) / "predictions" / time.strftime("%Y%m%d-%H%M%S"))
    return given


def predict(given: DictConfig) -> None:
    """Everything is looked at before the model loads; then batch after batch is predicted, written and drawn."""
    logs.start()
    from bbu_train.predict.pictures import find, settle
    from bbu_train.predict.run import TrainedRun

    out = arguments.new_folder(given.out)
    run = TrainedRun(given.run, given.checkpoint, given.route, given.teachers)
    samples = settle(find(given.images), run.picture_format, run.data(given.truth), given.teachers)
    predictor = run.predictor(given.max_new_tokens, given.max_caption_tokens)
    threshold = run.threshold if given.threshold is None else given.threshold
    out.mkdir(parents=True, exist_ok=True)
    num_workers = run.cfg.num_workers if given.num_workers is None else given.num_workers
    _write(out, predictor, predictor.prompts(samples, given.batch_size, num_workers), len(samples), threshold)
    print(f"checkpoint  {run.saved.folder}\nresult      {out / PREDICTIONS}, and the drawn pictures beside it")


def _write(out: Path, predictor, prompts: Iterable, num_pictures: int, threshold: float) -> None:
    from bbu_train.predict.show import drawn, line

    num_malformed = num_boxes = 0
    numbers = count()
    seconds = 0.0
    with (out / PREDICTIONS).open("w", encoding="utf-8") as file, tqdm(total=num_pictures, unit="picture") as progress:
        for samples, batch in prompts:
            began = time.perf_counter()
            results = predictor(samples, batch)
            seconds += time.perf_counter() - began
            for found, number in zip(results, numbers, strict=False):
                name = f"{number:05d}_{found.sample.student.path.stem}.jpg"
                row = line(found, threshold)
                file.write(json.dumps(row | {"drawn": name}, ensure_ascii=False) + "\n")
                drawn(found, threshold).save(out / name, quality=92)
                num_malformed += row.get("generated", {}).get("num_malformed", 0)
                num_boxes += sum(len(row[route]["objects"]) for route in ("head", "generated") if route in row)
            file.flush()
            progress.update(len(results))
    print(f"{num_pictures} pictures, {num_boxes} boxes, {seconds / num_pictures:.2f} s a picture")
    if "generated" in predictor.routes:
        print(f"{num_malformed} of {num_pictures} written answers are malformed or were cut off")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
