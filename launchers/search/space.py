"""From Hydra's sweep syntax to Optuna's distributions: the space that a search draws from."""

from hydra.core.override_parser.types import Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from bbu_train.errors import InputError

LOG_TAG = "log"
"""The tag of an interval to draw from on a logarithmic scale: tag(log,interval(1e-7,1e-4))."""


def to_distribution(override: Override) -> BaseDistribution:
    """Return the distribution of an override with several values. Listed values are strings, as on the command line.

    A range excludes its end, as in Python; an interval includes it: int(interval(1,4)) may be 4.
    """
    line, value = override.input_line, override.value()
    tags = set(getattr(value, "tags", ()))
    is_log = LOG_TAG in tags
    if unknown := sorted(tags - {LOG_TAG}):
        raise InputError(f"{line}: a search knows no tag {', '.join(unknown)}. There is {LOG_TAG}.")
    if getattr(value, "shuffle", False):
        raise InputError(f"{line}: a search decides its own order. Leave out shuffle.")
    try:
        if override.is_interval_sweep():
            distribution = IntDistribution if isinstance(value.start, int) else FloatDistribution
            return distribution(value.start, value.end, log=is_log)
        if override.is_range_sweep():
            return _range_distribution(value, is_log)
        return _choice_distribution(override, is_log)
    except ValueError as error:
        raise InputError(f"{line}: {error}") from error


def _range_distribution(value: RangeSweep, is_log: bool) -> BaseDistribution:
    values = list(value.range())
    if not values:
        raise ValueError("this range is empty.")
    distribution = IntDistribution if all(isinstance(number, int) for number in values) else FloatDistribution
    if is_log and distribution is FloatDistribution:
        raise ValueError("a range of fractions has even steps. Take interval() for a logarithmic scale.")
    return distribution(min(values), max(values), step=abs(value.step), log=is_log)


def _choice_distribution(override: Override, is_log: bool) -> BaseDistribution:
    texts = list(override.sweep_string_iterator())
    if is_log:
        raise ValueError(f"listed values have no scale. Leave out {LOG_TAG}, or give an interval.")
    if repeated := sorted({text for text in texts if texts.count(text) > 1}):
        raise ValueError(f"{', '.join(repeated)} is there twice.")
    return CategoricalDistribution(texts)
