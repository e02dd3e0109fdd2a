"""How a step is laid out on a rank, in the order of the time that it takes.

A layout changes the time and the memory of a step, and its result by rounding only. On an H200 (3B, compiled blocks,
all losses), none x 1 takes the least time. In comparison, vision x 1 takes 0.7% more, selective x 1 2% and full x 1 a
fifth; each doubling of the micro-batches adds 5 to 15%. GiB of the largest micro-batch of a step of 15,288 tokens:

    | micro-batches | none  | selective | full |
    |---|---|---|---|
    | 1             | > 138 | 107       | 54   |
    | 2             | 96    | 82        |      |
    | 4             | 75    | 67        | 53   |

Full checkpointing costs less than the third of the arithmetic that it repeats, and it saves more memory than selective
checkpointing in any number of micro-batches. So these layouts are worth a try, in this order: none x 1, vision x 1,
selective x 1, none x 2, then full x 1, 2, 4, ... Each of the others takes more time and more memory than one of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bbu_train.runs.settings import AUTO


@dataclass(frozen=True)
class Layout:
    """engine.gradient_checkpointing ("none", "vision", "selective" or "full") and engine.num_micro_batches."""

    gradient_checkpointing: str
    num_micro_batches: int

    @property
    def short(self) -> str:
        return f"{self.gradient_checkpointing} x {self.num_micro_batches}"

    def __str__(self) -> str:
        return (
            f"engine.gradient_checkpointing={self.gradient_checkpointing} "
            f"engine.num_micro_batches={self.num_micro_batches}"
        )


def candidates(gradient_checkpointing: str, num_micro_batches: int | str, max_samples: int) -> list[Layout]:
    """Return the layouts that the config allows, the fastest first. A value that is not "auto" is kept.

    `max_samples` is the most samples that a rank can have in a step: more micro-batches would be empty.
    """
    counts = list(_counts(max_samples)) if num_micro_batches == AUTO else [int(num_micro_batches)]
    if gradient_checkpointing != AUTO:
        return [Layout(gradient_checkpointing, count) for count in counts]
    if num_micro_batches != AUTO:
        return [Layout(choice, counts[0]) for choice in ("none", "vision", "selective", "full")]
    first = [Layout("none", 1), Layout("vision", 1), Layout("selective", 1), *(Layout("none", 2) for _ in counts[1:2])]
    return first + [Layout("full", count) for count in counts]


def _counts(max_samples: int) -> Iterator[int]:
    """Yield 1, 2, 4, ... and `max_samples`."""
    count = 1
    while count < max_samples:
        yield count
        count *= 2
    yield max(1, max_samples)
