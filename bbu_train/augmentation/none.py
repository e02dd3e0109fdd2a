"""No augmentation."""

from bbu_train.types.samples import Sample


class NoAugmentation:
    def __call__(self, sample: Sample, epoch: int) -> Sample:
        """Every picture as it is, in every epoch."""
        return sample
