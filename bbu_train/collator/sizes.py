"""How much there is to compute of some samples, wherever they lie."""

from collections.abc import Iterable, Sequence

from bbu_train.ops.flops import Sizes
from bbu_train.types.batch import Encoded
from bbu_train.types.samples import PictureFormat


def sizes(samples: Sequence[Encoded], picture_format: PictureFormat) -> Sizes:
    """Sums over the samples that carry a loss: what only stands in for a sample carries none, and is not needed."""
    samples = [sample for sample in samples if sample.annotated or sample.roles.any()]
    tokens = [len(sample.input_ids) for sample in samples]
    first = -1 if picture_format.teachers_apart else 0
    grids = [(height, width) for sample in samples for _, height, width in sample.grid_thw[first:].tolist()]
    patches = [height * width for height, width in grids]
    window = picture_format.window_size // picture_format.patch_size  # patches a side
    detected = [sample for sample in samples if sample.annotated]
    seen = [int(sample.grid_thw[-1].prod()) // picture_format.merge_size**2 for sample in detected]
    memory = [image_tokens + sample.memory_end for image_tokens, sample in zip(seen, detected, strict=True)]
    objects = [len(sample.captions) for sample in detected]
    captions = [len(caption) for sample in detected for caption in sample.captions]
    words = [sum(map(len, sample.captions)) for sample in detected]
    return Sizes(
        tokens=sum(tokens),
        token_squares=_squares(tokens),
        supervised=sum(int((sample.roles[1:] > 0).sum()) for sample in samples),
        patches=sum(patches),
        picture_squares=_squares(patches),
        # A window of a x b patches has (ab)^2 pairs: the sum over all windows is the product of two sums.
        window_squares=sum(_squares(_pieces(h, window)) * _squares(_pieces(w, window)) for h, w in grids),
        merged=sum(len(sample.image_positions) for sample in samples),
        samples=len(detected),
        memory=sum(memory),
        memory_image=sum(seen),
        captions=len(captions),
        caption_tokens=sum(captions),
        caption_squares=_squares(captions),
        caption_memory=_pairs(words, memory),
        caption_memory_image=_pairs(words, seen),
        object_squares=_squares(objects),
        object_memory=_pairs(objects, memory),
        object_memory_image=_pairs(objects, seen),
    )


def _pairs(some: Iterable[int], others: Iterable[int]) -> int:
    return sum(a * b for a, b in zip(some, others, strict=True))


def _squares(lengths: Iterable[int]) -> int:
    return sum(length * length for length in lengths)


def _pieces(length: int, piece: int) -> list[int]:
    return [piece] * (length // piece) + [length % piece]
