"""The order of an epoch."""

from collections.abc import Sequence

from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Draw


def shuffled(seed: int, epoch: int, indices: Sequence[int]) -> list[Draw]:
    """`indices` in an order that depends on the seed and the epoch alone."""
    order = generator("epoch", seed, epoch).permutation(len(indices)).tolist()
    return [Draw(epoch, indices[i]) for i in order]
