"""From the swept overrides of a command to the space that a search draws from: Hydra's words in, Optuna's out."""

from hydra.core.override_parser.types import Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from bbu_train.errors import InputError

SCALE = "log"
"""The tag that draws evenly on a logarithmic scale: tag(log,interval(1e-7,1e-4))."""


def distribution(override: Override) -> BaseDistribution:
    """What an override with several values may become. Listed values are texts, as they are spelt on a command line.

    A range has its ends from Python, an interval is closed: int(interval(1,4)) may be 4.
    """
    line, value = override.input_line, override.value()
    tags = set(getattr(value, "tags", ()))
    if unknown := sorted(tags - {SCALE}):
        raise InputError(f"{line}: tag {', '.join(unknown)} says nothing to a search. There is {SCALE}.")
    if getattr(value, "shuffle", False):
        raise InputError(f"{line}: a search draws at random, or where it was good. Leave out shuffle.")
    try:
        if override.is_interval_sweep():
            kind = IntDistribution if isinstance(value.start, int) else FloatDistribution
            return kind(value.start, value.end, log=SCALE in tags)
        if override.is_range_sweep():
            return _of_range(value, SCALE in tags)
        return _of_choice(override, SCALE in tags)
    except ValueError as error:
        raise InputError(f"{line}: {error}") from error


def _of_range(value: RangeSweep, is_log: bool) -> BaseDistribution:
    values = list(value.range())
    if not values:
        raise ValueError("this range is empty.")
    kind = IntDistribution if all(isinstance(number, int) for number in values) else FloatDistribution
    if is_log and kind is FloatDistribution:
        raise ValueError("a range of fractions has even steps. Take interval() for a logarithmic scale.")
    return kind(min(values), max(values), step=abs(value.step), log=is_log)


def _of_choice(override: Override, is_log: bool) -> BaseDistribution:
    texts = list(override.sweep_string_iterator())
    if is_log:
        raise ValueError(f"listed values have no scale. Leave out {SCALE}, or give an interval.")
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice.")
    return CategoricalDistribution(texts)
