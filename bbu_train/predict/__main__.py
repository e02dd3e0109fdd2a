"""`python -m bbu_train.predict run=<folder> images=<pictures> key=value ...`: detect objects in pictures."""

import sys
import time
from collections.abc import Sequence

from omegaconf import DictConfig

from bbu_train.cli import arguments
from bbu_train.ops.numbers import is_share
from bbu_train.predict import MAX_NEW_TOKENS
from bbu_train.runs import folder as run_folder
from bbu_train.runs.config_keys import refuse
from bbu_train.runtime import logs

USAGE = """\
usage: python -m bbu_train.predict run=<run folder> images=<file, folder or 'pattern'> [key=value ...]

Detects and describes the objects in pictures with a trained model, by one or both of its routes:

  head       the detection head predicts boxes, each with a description
  generated  the language model generates boxes and descriptions as JSON

Writes predictions.jsonl, with one line per picture, and a copy of each picture with its boxes drawn on it. With both
routes it holds the objects of the head, and generated.jsonl those of the language model. Either file is a data set:
data=jsonl data.train=<file> trains on it. Coordinates are pixels of the upright original. Pictures of the run's own
data also show their true boxes. From Python: bbu_train.load.

  key                 default                   meaning
  run                 required                  run folder, such as outputs/default/20260101-120000-abcdef01, or
                                                a folder that python -m bbu_train.export wrote
  images              required                  a picture, a folder of pictures with its subfolders, or a
                                                pattern in quotes, such as '/data/**/*.jpg'; hidden files and
                                                folders are left out
  checkpoint          best                      best, last or a step number
  route               both                      both, head or generated
  teachers            0                         number of example pictures with answers before each picture;
                                                they are drawn from the run's training pictures, also
                                                where the data fixes others
  threshold           of the checkpoint         lowest score of the head's boxes, 0 to 1; by default the
                                                threshold at which the checkpoint had its best F1 in validation,
                                                or 0.5 if there is none
  max_new_tokens      2048                      longest generated answer, in tokens; an object takes about 28. A
                                                longer answer is cut off, and the objects that can be read are
                                                kept
  batch_size          8                         pictures per batch
  num_workers         as in the run             processes that load pictures in advance; 0: none
  truth               true                      true: show the true boxes of pictures that are in the run's
                                                data; false: show none, and read the data only for teachers
  data.root           as in the run             the folder of the run's data, if it lies elsewhere now; a
                                                warning says if it is not the data that the run was trained on
  out                 <run>/predictions/<time>  output folder; it must be new or empty
"""
DEFAULTS = {
    "run": None,
    "images": None,
    "checkpoint": "best",
    "route": "both",
    "teachers": 0,
    "threshold": None,
    "max_new_tokens": MAX_NEW_TOKENS,
    "batch_size": 8,
    "num_workers": None,
    "truth": True,
    "data.root": None,
    "out": None,
}


def main(words: Sequence[str]) -> int:
    return arguments.run_program(lambda options: predict(_validate(options)), words, USAGE, DEFAULTS)


def _validate(options: DictConfig) -> DictConfig:
    """Raise InputError that lists every option that is wrong. Reads no file."""
    problems = arguments.missing_values(
        options, {"run": "a run's folder", "images": "a picture, a folder or a pattern"}
    )
    problems += arguments.wrong_choices(options, {"route": ("both", "head", "generated")})
    problems += arguments.wrong_checkpoint(options.checkpoint)
    minima = {"teachers": 0, "max_new_tokens": 1, "batch_size": 1}
    problems += arguments.wrong_counts(options, minima)
    if options.threshold is not None and not is_share(options.threshold):
        problems.append(f"threshold={options.threshold}: threshold is a number from 0 to 1.")
    if options.num_workers is not None:
        problems += arguments.wrong_counts(options, {"num_workers": 0})
    refuse(problems)
    return options


def predict(options: DictConfig) -> None:
    """Check all inputs, load the model, then predict, write and draw batch by batch."""
    logs.start(is_main=True)
    from bbu_train.predict import output_files
    from bbu_train.predict.exported_run import open_run
    from bbu_train.predict.pictures import build_samples, find_pictures

    folder = run_folder.on_disk(options.run)
    out = arguments.new_folder(options.out or str(folder / "predictions" / time.strftime("%Y%m%d-%H%M%S")))
    run = open_run(folder, options.checkpoint, options.route, options.teachers)
    run.set_threads()
    run.take_data_from(options.data.root)
    paths = find_pictures(options.images)
    samples = build_samples(paths, run.picture_format, run.load_data(options.truth), options.teachers)
    predictor = run.load_predictor(options.max_new_tokens)
    threshold = run.threshold if options.threshold is None else options.threshold
    num_workers = run.cfg.num_workers if options.num_workers is None else options.num_workers
    prompts = predictor.prompts(samples, options.batch_size, num_workers)
    classes = run_folder.classes(run.cfg.folder)
    print(output_files.write(predictor, prompts, len(samples), classes, threshold, out))
    print(
        f"checkpoint  {run.saved.folder}\nresult      {out / output_files.PREDICTIONS} and drawings in the same folder"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
