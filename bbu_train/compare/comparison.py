"""The comparison of a sweep's runs: ranking, effects, summary and tables."""

import difflib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bbu_train.compare import candidates, sweep, tables
from bbu_train.compare.candidates import Candidate, ScoredRun
from bbu_train.compare.command import training_command
from bbu_train.compare.effects import Effects, estimate_effects
from bbu_train.compare.sweep import ExcludedRun, SweepRun
from bbu_train.errors import InputError, all_problems, listed
from bbu_train.reporting.tables import Table
from bbu_train.runs.data_fingerprint import describe_changes
from bbu_train.runtime.wording import count_of


@dataclass(frozen=True)
class Comparison:
    folder: Path
    metric: str
    mode: str
    """"max" or "min": which is better."""
    ranking: list[Candidate]
    scored: list[ScoredRun]
    effects: Effects | None
    """None if no key has several values."""
    summary: list[str]
    leaderboard: Table
    effect_tables: list[Table]
    effects_note: str
    excluded: Table
    command: str
    """The command that trains the best candidate again."""
    command_notes: list[str]
    """What the user must know before training by `command`."""


def compare(outputs: Path, name: str, metric: str, mode: str, at: str) -> Comparison:
    """Compare the runs of outputs/<name>/.

    Raise InputError if the sweep or the metric does not exist, or if no run can be compared.
    """
    folder = sweep.find_sweep(outputs, name)
    finished, excluded = sweep.read_runs(folder)
    _check_metric(metric, finished, excluded)
    finished, repeated = sweep.drop_repetitions(finished)
    readable = [*finished, *(each.run for each in excluded if each.run is not None)]
    settings = {}
    if readable:
        settings = dict(zip((run.name for run in readable), candidates.differing_settings(readable), strict=True))
    scored, unscored = candidates.score_runs(finished, settings, metric, mode, at)
    excluded = [*excluded, *unscored]
    excluded_settings = [settings[each.run.name] for each in excluded if each.run is not None]
    excluded = sorted([*excluded, *repeated], key=lambda each: each.name)
    if not scored:
        raise all_problems(str(folder), [f"{each.name}: {each.reason}" for each in excluded], "No run can be compared.")
    ranking = candidates.rank_candidates(scored, excluded_settings, mode)
    keys = candidates.swept_keys(ranking)
    effects = None
    if keys:
        effects = estimate_effects([run.value for run in scored], [run.settings for run in scored], keys)
    command, removed_keys = training_command(ranking[0])
    steps = {run.step for run in scored}
    return Comparison(
        folder,
        metric,
        mode,
        ranking,
        scored,
        effects,
        _summary(name, metric, mode, at, ranking, scored, excluded),
        tables.leaderboard(ranking, metric, with_step=len(steps) > 1),
        tables.marginal_effects(effects, metric) if effects else [],
        tables.effects_note(effects) if effects else "",
        tables.not_compared(excluded),
        command,
        _command_notes(folder, ranking[0], removed_keys),
    )


def _command_notes(folder: Path, best: Candidate, removed_keys: Sequence[str]) -> list[str]:
    notes = []
    if removed_keys:
        notes.append(f"It leaves out the keys that this version no longer has: {', '.join(removed_keys)}")
    run = best.runs[0].run
    if (changes := describe_changes(run.config, folder / run.name)) is not None:
        notes.append(f"Its data is no longer what the candidate was trained on: {changes}")
    return notes


def _check_metric(metric: str, finished: Sequence[SweepRun], excluded: Sequence[ExcludedRun]) -> None:
    """Raise InputError if runs have metrics, but none has this one."""
    readable = [*finished, *(each.run for each in excluded if each.run is not None)]
    known = sorted({name for run in readable for name in run.series})
    if not known or metric in known:
        return
    similar = difflib.get_close_matches(metric, known, n=3) or [name for name in known if metric in name][:3]
    hint = f"Did you mean {' or '.join(similar)}? " if similar else ""
    raise InputError(f"No run has metric={metric}. {hint}There are: {listed(known)}.")


def _summary(
    name: str,
    metric: str,
    mode: str,
    at: str,
    ranking: Sequence[Candidate],
    scored: Sequence[ScoredRun],
    excluded: Sequence[ExcludedRun],
) -> list[str]:
    steps = {run.step for run in scored}
    when = "the best over each run's steps" if at == "best" else "at each run's end"
    where = f" (step {steps.pop()})" if len(steps) == 1 else ""
    lines = [
        f"{name}: {count_of(len(scored), 'run')} in {count_of(len(ranking), 'candidate')}"
        + (f"; {count_of(len(excluded), 'run')} not compared, see below" if excluded else ""),
        f"{metric}, {when}{where}; {'more' if mode == 'max' else 'less'} is better",
        _describe_lead(ranking),
    ]
    commits = {run.run.commit for run in scored}
    if len(commits) > 1:
        lines.append(f"The runs come from {len(commits)} versions of the code: {', '.join(sorted(map(str, commits)))}")
    return [line for line in lines if line]


def _describe_lead(ranking: Sequence[Candidate]) -> str:
    """Say how far the best candidate is ahead of the second, in standard errors of the difference between seeds."""
    if len(ranking) == 1:
        return ""
    first, second = ranking[0], ranking[1]
    if num_tied := sum(candidate.rank == 1 for candidate in ranking[1:]):
        return f"{num_tied + 1} candidates share the first place; the command is that of the first of them"
    lead = f"The best leads by {abs(first.mean - second.mean):.2g}"
    error = _standard_error(first, second, ranking)
    if error is None:
        return f"{lead}. No candidate has several seeds, so this may be chance"
    if error == 0:
        return f"{lead}, and seeds make no difference"
    return f"{lead}, {abs(first.mean - second.mean) / error:.1f} standard errors over seeds"


def _standard_error(first: Candidate, second: Candidate, ranking: Sequence[Candidate]) -> float | None:
    """Return the standard error of the difference of two means, from the pooled variance over seeds.

    None if no candidate has several seeds.
    """
    replicated = [[run.value for run in candidate.runs] for candidate in ranking if len(candidate.runs) > 1]
    degrees_of_freedom = sum(len(values) - 1 for values in replicated)
    if degrees_of_freedom == 0:
        return None
    variance = sum((len(values) - 1) * statistics.variance(values) for values in replicated) / degrees_of_freedom
    return math.sqrt(variance * (1 / len(first.runs) + 1 / len(second.runs)))
