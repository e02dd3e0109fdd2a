"""`python -m bbu_train.compare sweep=<name> key=value ...`: the best of a sweep, and what each key does."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from bbu_train.cli import arguments
from bbu_train.compare import comparison, publish, report
from bbu_train.errors import InputError
from bbu_train.metrics import direction
from bbu_train.reporting.tables import as_text
from bbu_train.runs.config_keys import refuse

USAGE = """\
python -m bbu_train.compare sweep=<name> [key=value ...]

Compares the finished runs of outputs/<name>/. Runs that differ only in their seed are one candidate. Prints the
leaderboard, the marginal effect of each swept key, and the command that trains the best candidate again. Writes plots
and one HTML page into outputs/<name>/compare/, and logs them on the sweep's parent run if the runs used MLflow.

  sweep     name of the sweep, a folder of outputs/
  metric    a name in metrics.jsonl, such as eval/ap50 (the default), eval/loss/total or loss/student_lm
  mode      max or min: which is better. Default: min for losses, norms, seconds, memory and
            boxes of unknown classes, else max
  at        last (the default): the value at the end of the run; best: the best over its steps, biased by noise
  top       number of candidates in the printed leaderboard (the page has all); default 20
  outputs   folder of the sweeps; default $BBU_OUTPUTS, or outputs
"""
DEFAULTS = {"sweep": None, "metric": "eval/ap50", "mode": None, "at": "last", "top": 20, "outputs": None}


def main(words: Sequence[str]) -> int:
    return arguments.run_program(lambda cfg: compare(_complete(cfg)), words, USAGE, DEFAULTS)


def _complete(cfg: DictConfig) -> DictConfig:
    """Check the arguments and fill in the defaults that depend on others."""
    if cfg.sweep is None:
        raise InputError("Name the sweep: sweep=<name>, a folder of outputs/. --help shows the other keys.")
    problems = arguments.wrong_choices(cfg, {"mode": ("max", "min", None), "at": ("last", "best")})
    refuse([*problems, *arguments.wrong_counts(cfg, {"top": 1})])
    cfg.mode = cfg.mode or direction.usual_mode(cfg.metric)
    cfg.outputs = cfg.outputs or os.environ.get("BBU_OUTPUTS", "outputs")
    return cfg


def compare(cfg: DictConfig) -> None:
    result = comparison.compare(Path(cfg.outputs).expanduser(), cfg.sweep, cfg.metric, cfg.mode, cfg.at)
    folder = report.write_report(result)  # before printing, which ends early if nobody reads the pipe to its end
    print("\n".join([*_lines(result, cfg.top), "", f"page    {folder / report.PAGE}"]), flush=True)
    if message := publish.publish(result, cfg.sweep, folder):
        print(f"MLflow  {message}")


def _lines(result: comparison.Comparison, top: int) -> Iterator[str]:
    """Yield the parts of the terminal's output."""
    yield from result.summary
    leaderboard = result.leaderboard
    yield "\n" + as_text(replace(leaderboard, rows=leaderboard.rows[:top]))
    if len(leaderboard.rows) > top:
        yield f"... and {len(leaderboard.rows) - top} more candidates: top={len(leaderboard.rows)} prints them."
    for table in result.effect_tables:
        yield "\n" + as_text(table)
    if result.effect_tables:
        yield "\n" + result.effects_note
    if result.excluded.rows:
        yield f"\n{result.excluded.title}\n{as_text(result.excluded)}"
    yield f"\nCommand of the best candidate:\n  {result.command}"
    yield from result.command_notes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
