"""The tables of a comparison, for the terminal and for the page."""

from collections.abc import Sequence

from bbu_train.compare.candidates import Candidate, short_names, swept_keys
from bbu_train.compare.effects import Effects, Level
from bbu_train.compare.formatting import mean_and_std
from bbu_train.compare.sweep import ExcludedRun
from bbu_train.reporting.tables import Table, Value, format_number


def leaderboard(candidates: Sequence[Candidate], metric: str, with_step: bool) -> Table:
    """Return a table with one row per candidate, best first, and a column for each swept key."""
    keys = short_names(swept_keys(candidates))
    header = ["rank", metric, "runs", *keys.values(), *(["step"] if with_step else []), "run"]
    rows = []
    for candidate in candidates:
        steps = sorted({run.step for run in candidate.runs})
        step = [", ".join(map(str, steps))] if with_step else []
        names = " ".join(run.run.name for run in candidate.runs)
        is_tied = sum(other.rank == candidate.rank for other in candidates) > 1
        rank = f"{candidate.rank}=" if is_tied else str(candidate.rank)
        values = [candidate.settings[key] for key in keys]
        rows.append([rank, mean_and_std(candidate.mean, candidate.std), candidate.run_count, *values, *step, names])
    return Table("Leaderboard", header, rows, _leaderboard_note(candidates))


def _leaderboard_note(candidates: Sequence[Candidate]) -> str:
    notes = []
    if any(len(candidate.runs) > 1 for candidate in candidates):
        notes.append("± is the standard deviation over seeds.")
    if any(candidate.num_excluded for candidate in candidates):
        notes.append("2/3 runs: one of three runs is not compared, see below.")
    return " ".join(notes)


def marginal_effects(effects: Effects, metric: str) -> list[Table]:
    """Return one table per key, the key with the largest effect first."""
    return [_effect_table(key, levels, metric, effects) for key, levels in effects.by_key.items()]


def _effect_table(key: str, levels: Sequence[Level], metric: str, effects: Effects) -> Table:
    header = [key, "runs", *([f"mean {metric}", "adjusted mean"] if effects.is_adjusted else [f"mean {metric}"])]
    rows: list[list[Value]] = []
    for level in levels:
        adjusted = mean_and_std(level.adjusted_mean, level.std)
        means = [format_number(level.mean), adjusted] if effects.is_adjusted else [adjusted]
        rows.append([level.value, str(len(level.observed)), *means])
    return Table(key, header, rows)


def effects_note(effects: Effects) -> str:
    """Say how far the effects can be trusted."""
    if effects.r_squared is None:
        return (
            "These are plain means: the keys do not vary independently of each other, or the metric does not vary, so "
            "the effects cannot be separated."
        )
    std = "± is the standard deviation over runs, after the effects of the other keys are subtracted. "
    unbalanced = "The sweep is unbalanced, so read the adjusted mean. " if effects.is_adjusted else ""
    if effects.degrees_of_freedom == 0:
        return f"{std}{unbalanced}The additive model has as many parameters as runs, so nothing tests its fit."
    share = f"The additive model explains {effects.r_squared:.0%} of the variance between runs"
    return f"{std}{unbalanced}{share}; the rest is noise and interaction between keys."


def not_compared(excluded: Sequence[ExcludedRun]) -> Table:
    return Table("Not compared", ["run", "why"], [[each.name, each.reason] for each in excluded])
