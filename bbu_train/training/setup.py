"""What one room cannot check alone, before the model loads."""

from collections.abc import Sequence

from bbu_train.errors import InputError, all_problems
from bbu_train.types.samples import Sample


def num_objects(samples: Sequence[Sample], num_queries: int | None) -> None:
    """A head cannot answer for more objects than it has queries; a model without a head has None."""
    if num_queries is None:
        return
    counts = [(sample.id, len(sample.student.objects or ())) for sample in samples]
    problems = [f"{name}: {count} objects" for name, count in counts if count > num_queries]
    if problems:
        what = f"Pictures with more objects than head.num_queries={num_queries}"
        raise all_problems(what, problems, "Raise head.num_queries.")


def max_tokens(limit: int, num_positions: int) -> None:
    """A sample may not be longer than the model has positions."""
    if not 0 < limit <= num_positions:
        raise InputError(f"collator.max_tokens={limit}: the model has positions for 1 to {num_positions} tokens.")
