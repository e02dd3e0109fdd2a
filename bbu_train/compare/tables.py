"""The comparison as tables of words, for the terminal and the page alike."""

from collections.abc import Sequence

from bbu_train.compare.cells import RankedCell, short_names, swept_keys
from bbu_train.compare.effects import Effects, Level
from bbu_train.compare.figures import plus_minus
from bbu_train.compare.sweep import Apart
from bbu_train.reporting.tables import Table, Value, number


def leaderboard(cells: Sequence[RankedCell], metric: str, with_step: bool) -> Table:
    """A cell a row, best first, with the keys that differ."""
    keys = short_names(swept_keys(cells))
    head = ["rank", metric, "runs", *keys.values(), *(["step"] if with_step else []), "run"]
    rows = []
    for cell in cells:
        steps = sorted({scored.step for scored in cell.runs})
        step = [", ".join(map(str, steps))] if with_step else []
        names = " ".join(scored.run.name for scored in cell.runs)
        tied = sum(other.rank == cell.rank for other in cells) > 1
        rank = f"{cell.rank}=" if tied else str(cell.rank)
        values = [cell.settings[key] for key in keys]
        rows.append([rank, plus_minus(cell.mean, cell.spread), cell.count, *values, *step, names])
    return Table("Leaderboard", head, rows, _about_seeds(cells))


def _about_seeds(cells: Sequence[RankedCell]) -> str:
    notes = []
    if any(len(cell.runs) > 1 for cell in cells):
        notes.append("± is the standard deviation over seeds.")
    if any(cell.num_apart for cell in cells):
        notes.append("2/3 runs: of three one is not compared, see below.")
    return " ".join(notes)


def marginal_effects(effects: Effects, metric: str) -> list[Table]:
    """One table a key."""
    return [_effect(key, levels, metric, effects) for key, levels in effects.by_key.items()]


def _effect(key: str, levels: Sequence[Level], metric: str, effects: Effects) -> Table:
    adjusted = effects.explained is not None and not effects.balanced
    head = [key, "runs", *([f"mean {metric}", "others evened out"] if adjusted else [f"mean {metric}"])]
    rows: list[list[Value]] = []
    for level in levels:
        evened = plus_minus(level.adjusted_mean, level.spread)
        means = [number(level.mean), evened] if adjusted else [evened]
        rows.append([level.value, str(len(level.observed)), *means])
    return Table(key, head, rows)


def about_effects(effects: Effects) -> str:
    """How far the effects may be trusted."""
    if effects.explained is None:
        return (
            "Plain means: these keys do not vary independently of each other (or nothing varies), so what is due to "
            "which cannot be told."
        )
    kind = "± is the standard deviation over runs of what the other keys do not explain. "
    uneven = "" if effects.balanced else "The sweep is unbalanced: the column to read is the evened out one. "
    if effects.freedom == 0:
        return f"{kind}{uneven}There are as many unknowns as runs, so nothing checks whether effects add up."
    share = f"Added up, they explain {effects.explained:.0%} of the variance between runs"
    return f"{kind}{uneven}{share}; the rest is chance and keys that act together."


def not_compared(apart: Sequence[Apart]) -> Table:
    return Table("Not compared", ["run", "why"], [[each.name, each.reason] for each in apart])
