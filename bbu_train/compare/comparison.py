"""From the folders of a sweep to what they say: the ranking, the effects, and the words about both."""

import difflib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bbu_train.compare import cells, sweep, tables
from bbu_train.compare.cells import RankedCell, Scored
from bbu_train.compare.command import command
from bbu_train.compare.effects import Effects, effects
from bbu_train.compare.sweep import Apart, SweepRun
from bbu_train.errors import InputError, all_problems
from bbu_train.reporting.tables import Table


@dataclass(frozen=True)
class Comparison:
    folder: Path
    metric: str
    mode: str
    ranking: list[RankedCell]
    scored: list[Scored]
    effects: Effects | None
    """None where no key has several values."""
    summary: list[str]
    leaderboard: Table
    effect_tables: list[Table]
    about_effects: str
    excluded: Table
    command: str
    gone: list[str]
    """Keys of the best cell that this version of the program no longer has."""


def compare(outputs: Path, name: str, metric: str, mode: str, at: str) -> Comparison:
    """Raises InputError where there is no sweep of that name, no such metric, or no run to compare."""
    folder = sweep.find(outputs, name)
    ended, apart = sweep.read(folder)
    _refuse_unknown(metric, ended, apart)
    ended, repeated = sweep.without_repetitions(ended)
    readable = [*ended, *(each.run for each in apart if each.run is not None)]
    settings = dict(zip((run.name for run in readable), cells.settings_of(readable), strict=True)) if readable else {}
    scored, without = cells.scores(ended, settings, metric, mode, at)
    apart = [*apart, *without]
    lost = [settings[each.run.name] for each in apart if each.run is not None]
    apart = sorted([*apart, *repeated], key=lambda each: each.name)
    if not scored:
        raise all_problems(str(folder), [f"{each.name}: {each.reason}" for each in apart], "No run can be compared.")
    ranking = cells.ranked(scored, lost, mode)
    keys = cells.swept_keys(ranking)
    found = effects([each.value for each in scored], [each.settings for each in scored], keys) if keys else None
    again, gone = command(ranking[0])
    steps = {each.step for each in scored}
    return Comparison(
        folder,
        metric,
        mode,
        ranking,
        scored,
        found,
        _summary(name, metric, mode, at, ranking, scored, apart),
        tables.leaderboard(ranking, metric, with_step=len(steps) > 1),
        tables.marginal_effects(found, metric) if found else [],
        tables.about_effects(found) if found else "",
        tables.not_compared(apart),
        again,
        gone,
    )


def _refuse_unknown(metric: str, ended: Sequence[SweepRun], apart: Sequence[Apart]) -> None:
    known = sorted({name for run in [*ended, *(each.run for each in apart if each.run)] for name in run.series})
    if not known or metric in known:
        return
    near = difflib.get_close_matches(metric, known, n=3) or [name for name in known if metric in name][:3]
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"No run has metric={metric}. {hint}There are: {', '.join(known)}.")


def _summary(
    name: str,
    metric: str,
    mode: str,
    at: str,
    ranking: Sequence[RankedCell],
    scored: Sequence[Scored],
    apart: Sequence[Apart],
) -> list[str]:
    steps = {each.step for each in scored}
    when = "the best over each run's steps" if at == "best" else "at each run's end"
    where = f" (step {steps.pop()})" if len(steps) == 1 else ""
    lines = [
        f"{name}: {_count(len(scored), 'run')} in {_count(len(ranking), 'cell')}"
        + (f"; {_count(len(apart), 'run')} not compared, see below" if apart else ""),
        f"{metric}, {when}{where}; {'more' if mode == 'max' else 'less'} is better",
        _best(ranking),
    ]
    commits = {each.run.commit for each in scored}
    if len(commits) > 1:
        lines.append(f"The runs come from {len(commits)} versions of the code: {', '.join(sorted(map(str, commits)))}")
    return [line for line in lines if line]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _best(ranking: Sequence[RankedCell]) -> str:
    """How far ahead the best is, against what chance does between seeds."""
    if len(ranking) == 1:
        return ""
    first, second = ranking[0], ranking[1]
    if num_tied := sum(cell.rank == 1 for cell in ranking[1:]):
        return f"{num_tied + 1} cells share the first place; the command is that of the first of them"
    lead = abs(first.mean - second.mean)
    error = _standard_error(first, second, ranking)
    if error is None:
        return f"The best leads by {lead:.2g}. No cell has several seeds, so whether that is chance is not known"
    ratio = f"{lead / error:.1f} standard errors" if error else "and seeds make no difference"
    return f"The best leads by {lead:.2g}, {ratio}{' of what seeds make' if error else ''}"


def _standard_error(first: RankedCell, second: RankedCell, ranking: Sequence[RankedCell]) -> float | None:
    """Of the difference of two means, by the variance between seeds pooled over all cells."""
    several = [[scored.value for scored in cell.runs] for cell in ranking if len(cell.runs) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if freedom == 0:
        return None
    variance = sum((len(values) - 1) * statistics.variance(values) for values in several) / freedom
    return math.sqrt(variance * (1 / len(first.runs) + 1 / len(second.runs)))
