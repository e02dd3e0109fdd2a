"""`python -m bbu_train.evaluate run=<folder> key=value ...`: score a checkpoint of a trained run on a split."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from bbu_train.cli import arguments
from bbu_train.runs import folder as run_folder
from bbu_train.runs.config_keys import refuse
from bbu_train.runtime import logs

USAGE = """\
usage: python -m bbu_train.evaluate run=<run folder> [key=value ...]

Scores a checkpoint on a split of the run's data, by one or both of its routes:

  head       the boxes and descriptions of the detection head
  generated  the boxes and descriptions that the language model generates as JSON

Each route is scored with 0, 1 and 2 teachers (example pictures with answers) before each picture. Reports average
precision (AP) and recall (AR), F1, correct descriptions, malformed answers, seconds per picture, and the gain from
teachers. Writes table.csv, table.json and table.png, and logs all numbers to the run in MLflow, if it has one.

  key             default                   meaning
  run             required                  run folder, such as outputs/default/20260101-120000-abcdef01, or a
                                            folder that python -m bbu_train.export wrote, which MLflow does not know
  checkpoint      best                      best, last or a step number
  split           validation                validation, train, or another split of the run's data, such as test:
                                            a file of ImageSets/Main (data=voc) or under data.root (data=jsonl)
  route           both                      both, head or generated
  teachers        [0,1,2]                   numbers of teachers to compare; they are drawn from the run's
                                            training pictures, also where the data fixes others
  max_new_tokens  2 x longest answer        longest generated answer, in tokens; a longer one is cut off. By
                                            default twice the longest true answer of a training picture
  batch_size      8                         pictures per batch
  num_workers     as in the run             processes that load pictures in advance; 0: none
  data.root       as in the run             the folder of the run's data, if it lies elsewhere now; a warning says
                                            if it is not the data that the run was trained on
  out             <run>/evaluations/<time>  output folder; it must be new or empty
"""
DEFAULTS = {
    "run": None,
    "checkpoint": "best",
    "split": "validation",
    "route": "both",
    "teachers": [0, 1, 2],
    "max_new_tokens": None,
    "batch_size": 8,
    "num_workers": None,
    "data.root": None,
    "out": None,
}


def main(words: Sequence[str]) -> int:
    return arguments.run_program(lambda options: evaluate(_validate(options)), words, USAGE, DEFAULTS)


def _validate(options: DictConfig) -> DictConfig:
    """Sort `teachers`, and raise InputError that lists every option that is wrong. Reads no file."""
    problems = arguments.missing_values(options, {"run": "a run's folder", "split": "validation, train or another"})
    problems += arguments.wrong_choices(options, {"route": ("both", "head", "generated")})
    problems += arguments.wrong_checkpoint(options.checkpoint)
    optional = {"max_new_tokens": 1, "num_workers": 0}
    minima = {"batch_size": 1} | {key: minimum for key, minimum in optional.items() if options[key] is not None}
    problems += arguments.wrong_counts(options, minima)
    teachers = options.teachers if isinstance(options.teachers, ListConfig) else [options.teachers]
    if not teachers or not all(arguments.is_count(number, 0) for number in teachers):
        problems.append(f"teachers={options.teachers}: teachers is a list of whole numbers, such as [0,1,2].")
    refuse(problems)
    options.teachers = sorted(set(teachers))
    return options


def evaluate(options: DictConfig) -> None:
    """Check all inputs, load the model, score each number of teachers, then write, log and print the table."""
    logs.start(is_main=True)
    from bbu_train.evaluate import output_files, publish
    from bbu_train.evaluate.measure import Conversations, default_max_new_tokens, measure
    from bbu_train.evaluate.split import load_split
    from bbu_train.evaluate.table import EvaluationTable
    from bbu_train.predict.exported_run import open_run
    from bbu_train.runs.data_fingerprint import warn_if_changed

    folder = run_folder.on_disk(options.run)
    out = arguments.new_folder(options.out or str(folder / "evaluations" / time.strftime("%Y%m%d-%H%M%S")))
    run = open_run(folder, options.checkpoint, options.route, max(options.teachers))
    run.set_threads()
    run.take_data_from(options.data.root)
    with run_folder.built_by_this_code(run.cfg.folder):
        data, samples = load_split(run.cfg.copy(), options.split)
    warn_if_changed(run.cfg, Path(run.cfg.folder))
    builder = run.make_builder()
    conversations = [
        Conversations(data, samples, num_teachers, builder, run.preprocessing) for num_teachers in options.teachers
    ]
    max_new_tokens = options.max_new_tokens or default_max_new_tokens(builder, data.train)
    num_workers = run.cfg.num_workers if options.num_workers is None else options.num_workers
    predictor = run.load_predictor(max_new_tokens)
    rows = measure(predictor, conversations, options.batch_size, num_workers)
    table = EvaluationTable(options.run, run.saved.step, options.split, tuple(rows))
    # Files and MLflow come before the printed table: printing fails if stdout is a pipe that was closed early.
    output_files.write(table, out)
    mlflow_message = publish.publish(run.cfg, table, out)
    print(f"{table.as_text()}\n\ncheckpoint  {run.saved.folder}\nresult      {out}")
    if mlflow_message:
        print(f"MLflow      {mlflow_message}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
