"""The error of samples that have more tokens than a limit of the config allows."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from bbu_train.errors import InputError, all_problems
from bbu_train.types.samples import SampleVisit


class Length(NamedTuple):
    """The tokens of a sample, and the epoch in which it has them."""

    tokens: int
    epoch: int


class TooLong(InputError):
    """Samples have more than `limit` tokens, which is the value of `key`.

    `lengths` has the longest of each sample, by its id. The message says which value of `key` takes them all, unless
    the model has fewer positions than that (`max_positions`, if it is known).
    """

    def __init__(self, key: str, limit: int, lengths: Mapping[str, Length], max_positions: int | None = None):
        self.key, self.limit, self.lengths = key, limit, lengths
        by_length = sorted(lengths.items(), key=lambda item: (-item[1].tokens, item[0]))
        needed = by_length[0][1].tokens
        if max_positions is not None and needed > max_positions:
            remedy = f"The model has positions for {max_positions} tokens, so {key} cannot be {needed}. Lower"
        else:
            remedy = f"{key}={needed} takes them all. Or lower"
        error = all_problems(
            f"Samples are longer than {key}={limit} tokens",
            [f"{sample}: {length.tokens} tokens in epoch {length.epoch}" for sample, length in by_length],
            f"{remedy} model.max_pixels or the number of teachers (data.teachers.num_teachers), which makes them "
            f"shorter, or leave them out with collator.max_tokens={limit} collator.too_long=drop.",
        )
        super().__init__(str(error))

    @classmethod
    def of_visits(
        cls, key: str, limit: int, lengths: Mapping[SampleVisit, int], name: Callable[[SampleVisit], str]
    ) -> "TooLong":
        """Return the error of samples with these tokens in each epoch; `name` gives a sample's id."""
        longest: dict[str, Length] = {}
        for visit in sorted(lengths):
            sample, length = name(visit), Length(lengths[visit], visit.epoch)
            if sample not in longest or longest[sample].tokens < length.tokens:
                longest[sample] = length
        return cls(key, limit, longest)
