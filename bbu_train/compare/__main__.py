"""`python -m bbu_train.compare sweep=<name> key=value ...`: what won in a sweep, and why."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from bbu_train.cli import arguments
from bbu_train.compare import comparison, output_files, publish
from bbu_train.errors import InputError
from bbu_train.metrics import direction
from bbu_train.reporting.tables import as_text
from bbu_train.runs.config_keys import refuse

USAGE = """\
python -m bbu_train.compare sweep=<name> [key=value ...]

Compares the runs of outputs/<name>/ that have ended. Runs that are equal but for their seed are one cell. Prints the
leaderboard, the marginal effect of each swept key and the best cell's command; writes pictures and one HTML page into
outputs/<name>/compare/ and, where the runs went to MLflow, logs them on the sweep's parent run.

  sweep     name of the family of runs
  metric    any name in metrics.jsonl, such as eval/ap50 (the default), eval/loss/total or loss/student_lm
  mode      max or min: which is better. Default: min for losses, norms, seconds and memory, else max
  at        last (the default): the value at the end of the run; best: the best over its steps, which flatters noise
  top       cells of the leaderboard that are printed (the page has all); default 20
  outputs   where runs lie; default $BBU_OUTPUTS, or outputs
"""
DEFAULTS = {"sweep": None, "metric": "eval/ap50", "mode": None, "at": "last", "top": 20, "outputs": None}


def main(words: Sequence[str]) -> int:
    return arguments.call(lambda given: compare(_settled(given)), words, USAGE, DEFAULTS, paths=())


def _settled(cfg: DictConfig) -> DictConfig:
    if cfg.sweep is None:
        raise InputError("Say which sweep: sweep=<name>, a folder of outputs/. --help says the rest.")
    problems = arguments.wrong_choices(cfg, {"mode": ("max", "min", None), "at": ("last", "best")})
    refuse([*problems, *arguments.wrong_counts(cfg, {"top": 1})])
    cfg.metric = str(cfg.metric)
    cfg.mode = cfg.mode or direction.usual_mode(cfg.metric)
    cfg.outputs = str(cfg.outputs or os.environ.get("BBU_OUTPUTS", "outputs"))
    return cfg


def compare(cfg: DictConfig) -> None:
    found = comparison.compare(Path(cfg.outputs).expanduser(), str(cfg.sweep), cfg.metric, cfg.mode, cfg.at)
    folder = output_files.write(found)  # before the words, which may go to a pipe that nobody reads to its end
    print("\n".join([*_lines(found, cfg.top), "", f"page    {folder / output_files.PAGE}"]), flush=True)
    if said := publish.publish([scored.run for scored in found.scored], str(cfg.sweep), folder):
        print(f"MLflow  {said}")


def _lines(found: comparison.Comparison, top: int) -> Iterator[str]:
    """What the terminal shows."""
    yield from found.summary
    board = found.leaderboard
    yield "\n" + as_text(replace(board, rows=board.rows[:top]))
    if len(board.rows) > top:
        yield f"... and {len(board.rows) - top} more cells: top={len(board.rows)} prints them."
    for table in found.effect_tables:
        yield "\n" + as_text(table)
    if found.effect_tables:
        yield "\n" + found.about_effects
    if found.excluded.rows:
        yield f"\n{found.excluded.title}\n{as_text(found.excluded)}"
    yield f"\nThe best cell again:\n  {found.command}"
    if found.gone:
        yield f"This version has no longer, so the command leaves out: {', '.join(found.gone)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
