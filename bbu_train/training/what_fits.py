"""What a run that does not fit could change: each choice with the GiB that it needs, and the text of the error."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from bbu_train.errors import MAX_SHOWN, InputError, listed
from bbu_train.runs.settings import AUTO
from bbu_train.training import memory_phases
from bbu_train.training.changes import Run, are_compatible, bytes_after, possible_changes
from bbu_train.training.memory import GIB, MARGIN, allowed_layouts, plan_memory
from bbu_train.training.outline import SMALLEST_PUBLISHED

SMALLER = f"model={SMALLEST_PUBLISHED}"


class Choice(NamedTuple):
    """Overrides of the command, and the bytes that each process then needs."""

    overrides: tuple[str, ...]
    num_bytes: int

    def __str__(self) -> str:
        return f"{' '.join(self.overrides)}: {self.num_bytes / GIB:.1f} GiB"


def does_not_fit(run: Run, available_bytes: int) -> InputError:
    """Return the error that says what the run needs, and what would fit."""
    needed = run.least.prediction
    largest, source = run.least.training, run.inputs.train
    if run.least.evaluation is not None and needed.evaluation == needed.peak:
        largest, source = run.least.evaluation, run.inputs.validation
    names = listed(source.names((largest.visits,)))
    fitting = find_choices(run, available_bytes)
    choices = (
        "\n".join(f"  {choice}" for choice in fitting[:MAX_SHOWN]) or "  none of the choices, nor two of them together"
    )
    card = needed.peak / (1 - MARGIN) / GIB
    sizes = f"{largest.sizes.positions} tokens and {largest.sizes.pictures} pictures"
    return InputError(
        f"The run does not fit: it needs {needed.peak / GIB:.1f} GiB of {available_bytes / GIB:.1f} GiB with "
        f"{run.least.layout}, the layout that needs least. Its largest micro-batch has {sizes} ({names}).\n"
        f"{needed.table()}\nWhat would fit, by prediction and with {MARGIN:.0%} to spare:\n{choices}\n"
        f"  a GPU with {card:.0f} GiB"
    )


def find_choices(run: Run, available_bytes: int) -> list[Choice]:
    """Return the choices that fit, those that need most first.

    Pairs of changes are listed only if neither is enough alone, and changes to the smaller model only if nothing else
    fits.
    """
    limit, smaller = (1 - MARGIN) * available_bytes, _with_smaller_model(run)
    found = [*_other_layouts(run, available_bytes), *_fitting_changes(run, limit)]
    if smaller is not None and smaller.least.prediction.peak <= limit:
        found.append(Choice((SMALLER,), smaller.least.prediction.peak))
    elif smaller is not None and not found:
        found = [Choice((SMALLER, *overrides), needed) for overrides, needed in _fitting_changes(smaller, limit)]
    return sorted(found, key=lambda choice: -choice.num_bytes)


def _fitting_changes(run: Run, limit: float) -> Iterator[Choice]:
    """Yield the changes that are enough alone, and the pairs of those that are not."""
    not_enough = []
    for change in possible_changes(run):
        choice = Choice((change.override,), bytes_after(run, [change]))
        if choice.num_bytes <= limit:
            yield choice
        else:
            not_enough.append(change)
    for pair in filter(are_compatible, combinations(not_enough, 2)):
        choice = Choice(tuple(change.override for change in pair), bytes_after(run, pair))
        if choice.num_bytes <= limit:
            yield choice


def _other_layouts(run: Run, available_bytes: int) -> Iterator[Choice]:
    """Yield the fastest layout that fits although the config forbids it, if there is one."""
    layouts = allowed_layouts(run.inputs, AUTO, AUTO, run.num_ranks)
    parts, evaluates = (run.model, run.optimizer, run.average, run.inputs), run.least.evaluation is not None
    for candidate in plan_memory(*parts, layouts, run.execution, run.num_ranks, evaluates):
        if candidate.prediction.fits(available_bytes):
            yield Choice((str(candidate.layout),), candidate.prediction.peak)
            return


def _with_smaller_model(run: Run) -> Run | None:
    """Return the run with the smallest published model, if this is smaller than the run's own."""
    outline = run.published()
    if memory_phases.load_bytes(outline.model) >= memory_phases.load_bytes(run.model):
        return None
    parts, evaluates = (outline.model, outline.optimizer, outline.average), run.least.evaluation is not None
    layouts = [run.least.layout]
    (least,) = plan_memory(*parts, run.inputs, layouts, run.execution, run.num_ranks, evaluates)
    return replace(run, model=outline.model, optimizer=outline.optimizer, average=outline.average, least=least)
