"""Short conversations first, then longer ones, too."""

from collections.abc import Callable, Sequence

from bbu_train.errors import InputError
from bbu_train.ops.numbers import is_number
from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.types.samples import Draw, Step


class ShortestFirst:
    """`num_samples` a step, from a share of the shortest samples that grows from `share` to all over `num_epochs`.

    Epoch e visits each of the shortest share + (1 - share) e / num_epochs of the samples once, and from epoch
    `num_epochs` on every sample (a curriculum, Bengio et al. 2009). The lengths are those of that epoch's views; of two
    equally long samples the first one is the shorter. An epoch's last step may hold fewer samples.
    """

    def __init__(self, num_samples: int, share: float | int, num_epochs: int, seed: int):
        if not is_number(share) or not 0 < share <= 1:
            raise InputError(f"sampler.share={share}: expected a number above 0, at most 1.")
        if type(num_epochs) is not int or num_epochs < 1:
            raise InputError(f"sampler.num_epochs={num_epochs}: expected a whole number, 1 or more.")
        self.share = share
        self.num_epochs = num_epochs
        self.shuffled = FixedSamples(num_samples, seed)

    def epoch(
        self,
        epoch: int,
        indices: Sequence[int],
        num_tokens: Callable[[Draw], int],
        cost: Callable[[Draw], int],
        name: Callable[[Draw], str],
    ) -> list[Step]:
        """The steps of one epoch over `indices`: a function of the seed, the epoch and its lengths."""
        by_length = sorted(indices, key=lambda index: num_tokens(Draw(epoch, index)))
        share = self.share + (1 - self.share) * min(1, epoch / self.num_epochs)
        shortest = by_length[: max(1, round(share * len(by_length)))]
        return self.shuffled.epoch(epoch, sorted(shortest), num_tokens, cost, name)
