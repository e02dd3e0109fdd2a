"""The order in which an epoch visits the samples."""

from collections.abc import Sequence

from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import SampleVisit


def shuffle(seed: int, epoch: int, indices: Sequence[int]) -> list[SampleVisit]:
    """Return a visit to each of `indices`, in an order that depends only on the seed and the epoch."""
    order = generator("epoch", seed, epoch).permutation(len(indices)).tolist()
    return [SampleVisit(epoch, indices[i]) for i in order]
