"""No augmentation."""

from bbu_train.types.samples import Sample


class NoAugmentation:
    """Leaves every picture as it is, in every epoch."""

    def __call__(self, sample: Sample, epoch: int) -> Sample:
        return sample
