"""The amount of arithmetic that samples need, whatever their layout."""

from collections.abc import Iterable, Sequence

from bbu_train.ops.flops import Sizes
from bbu_train.types.batch import Encoded
from bbu_train.types.samples import PictureFormat


def sizes(samples: Sequence[Encoded], picture_format: PictureFormat) -> Sizes:
    """Sum the sizes of all samples that have a loss. `Encoded.unsupervised` fillers have none and count nothing."""
    samples = [sample for sample in samples if sample.annotated or sample.roles.any()]
    tokens = [len(sample.input_ids) for sample in samples]
    first = -1 if picture_format.teachers_apart else 0
    grids = [(height, width) for sample in samples for _, height, width in sample.grid_thw[first:].tolist()]
    patches = [height * width for height, width in grids]
    window = picture_format.window_size // picture_format.patch_size  # patches a side
    detected = [sample for sample in samples if sample.annotated]
    memory_image = [int(sample.grid_thw[-1].prod()) // picture_format.merge_size**2 for sample in detected]
    memory = [num_image + sample.memory_end for num_image, sample in zip(memory_image, detected, strict=True)]
    objects = [len(sample.captions) for sample in detected]
    captions = [len(caption) for sample in detected for caption in sample.captions]
    caption_tokens = [sum(map(len, sample.captions)) for sample in detected]
    return Sizes(
        tokens=sum(tokens),
        token_squares=_squares(tokens),
        supervised=sum(int((sample.roles[1:] > 0).sum()) for sample in samples),
        patches=sum(patches),
        picture_squares=_squares(patches),
        # A window of a x b patches has (ab)^2 pairs, so the sum over all windows is the product of two sums.
        window_squares=sum(_squares(_pieces(h, window)) * _squares(_pieces(w, window)) for h, w in grids),
        merged=sum(len(sample.image_positions) for sample in samples),
        samples=len(detected),
        memory=sum(memory),
        memory_image=sum(memory_image),
        captions=len(captions),
        caption_tokens=sum(captions),
        caption_squares=_squares(captions),
        caption_memory=_pairs(caption_tokens, memory),
        caption_memory_image=_pairs(caption_tokens, memory_image),
        object_squares=_squares(objects),
        object_memory=_pairs(objects, memory),
        object_memory_image=_pairs(objects, memory_image),
    )


def _pairs(queries: Iterable[int], keys: Iterable[int]) -> int:
    return sum(num_queries * num_keys for num_queries, num_keys in zip(queries, keys, strict=True))


def _squares(lengths: Iterable[int]) -> int:
    return sum(length * length for length in lengths)


def _pieces(length: int, piece: int) -> list[int]:
    """Cut `length` into pieces of `piece` and the remainder."""
    return [piece] * (length // piece) + [length % piece]
