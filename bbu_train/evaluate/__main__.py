"""`python -m bbu_train.evaluate run=<folder> key=value ...`: what a trained model finds, in one table."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from bbu_train.cli import arguments
from bbu_train.runs.config_keys import refuse
from bbu_train.runtime import logs

USAGE = """\
python -m bbu_train.evaluate run=<run folder> [key=value ...]

Scores a checkpoint by both routes, the head's boxes and the language model's written JSON, with 0, 1 and 2 teachers
before each picture: average precision and recall, F1, descriptions, malformed answers, seconds a picture, and what
teachers are worth. Writes table.csv, table.json and table.png, and logs all of it on the run in MLflow, if it has one.

  run             folder of the run, such as outputs/default/20260101-120000-abcdef01
  checkpoint      best (the default), last, or a step
  split           validation (the default), train, or the name of another one of the run's data: a file of
                  ImageSets/Main (data=voc) or under data.root (data=jsonl), such as test
  route           both (the default), head or generated
  teachers        how many, as a list; default [0,1,2]. They are drawn from the training pictures as in validation
  max_new_tokens  of a written answer; default: twice the longest answer of a training picture. A longer one is cut off
  batch_size      pictures at once; default 8
  num_workers     processes that read pictures ahead; default: as many as the run had
  out             a new folder for the result; default <run folder>/evaluations/<time>
"""
DEFAULTS = {
    **{"run": None, "checkpoint": "best", "split": "validation", "route": "both", "teachers": [0, 1, 2]},
    **{"max_new_tokens": None, "batch_size": 8, "num_workers": None, "out": None},
}
PATHS = ("run", "split", "out")


def main(words: Sequence[str]) -> int:
    return arguments.call(lambda given: evaluate(_settled(given)), words, USAGE, DEFAULTS, PATHS)


def _settled(given: DictConfig) -> DictConfig:
    """What can be known without a look at any file."""
    problems = arguments.absent(given, {"run": "a run's folder", "split": "validation, train or another"})
    problems += arguments.wrong_choices(given, {"route": ("both", "head", "generated")})
    problems += arguments.wrong_checkpoint(given.checkpoint)
    optional = {"max_new_tokens": 1, "num_workers": 0}
    least = {"batch_size": 1} | {key: limit for key, limit in optional.items() if given[key] is not None}
    problems += arguments.wrong_counts(given, least)
    teachers = given.teachers if isinstance(given.teachers, ListConfig) else [given.teachers]
    if not teachers or not all(arguments.is_count(number, 0) for number in teachers):
        problems.append(f"teachers={given.teachers}: teachers is a list of whole numbers, such as [0,1,2].")
    refuse(problems)
    given.teachers = sorted(set(teachers))
    given.out = given.out or str(Path(given.run) / "evaluations" / time.strftime("%Y%m%d-%H%M%S"))
    return given


def evaluate(given: DictConfig) -> None:
    """Everything is looked at before the model loads; then each number of teachers is measured, and all is written."""
    logs.start()
    from bbu_train.evaluate import output_files, publish
    from bbu_train.evaluate.measure import Conversations, measured, twice_the_longest_answer
    from bbu_train.evaluate.split import load
    from bbu_train.evaluate.table import Scores
    from bbu_train.predict.run import TrainedRun

    out = arguments.new_folder(given.out)
    run = TrainedRun(given.run, given.checkpoint, given.route, max(given.teachers))
    data, samples = load(run.cfg, given.split)
    builder = run.builder()
    conversations = [Conversations(data, samples, number, builder, run.preprocessing) for number in given.teachers]
    most = given.max_new_tokens or twice_the_longest_answer(builder, data.train)
    num_workers = run.cfg.num_workers if given.num_workers is None else given.num_workers
    predictor = run.predictor(most, builder.max_caption_tokens(data.train))
    rows = measured(predictor, conversations, given.batch_size, num_workers)
    scores = Scores(given.run, run.saved.step, given.split, tuple(rows))
    output_files.write(scores, out)  # and logged, before the words, which may go to a pipe that nobody reads to its end
    said = publish.publish(run.cfg, scores, out)
    print(f"{scores.as_text()}\n\ncheckpoint  {run.saved.folder}\nresult      {out}")
    if said:
        print(f"MLflow      {said}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
