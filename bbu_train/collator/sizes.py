"""How much there is to compute of some samples, wherever they lie."""

from collections.abc import Iterable, Sequence

from bbu_train.types import Encoded, PictureFormat, Sizes


def sizes(samples: Sequence[Encoded], picture_format: PictureFormat) -> Sizes:
    """Sums over the samples that carry a loss: what only stands in for a sample carries none, and is not needed."""
    samples = [sample for sample in samples if sample.annotated or sample.roles.any()]
    tokens = [len(sample.input_ids) for sample in samples]
    first = -1 if picture_format.teachers_apart else 0
    grids = [(height, width) for sample in samples for _, height, width in sample.grid_thw[first:].tolist()]
    patches = [height * width for height, width in grids]
    window = picture_format.window_size // picture_format.patch_size  # patches a side
    detected = [(_memory(sample, picture_format.merge_size), sample.captions) for sample in samples if sample.annotated]
    captions = [(len(caption), memory) for memory, its in detected for caption in its]
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
        memory=sum(memory for memory, _ in detected),
        captions=len(captions),
        caption_tokens=sum(length for length, _ in captions),
        caption_squares=_squares(length for length, _ in captions),
        caption_memory=sum(length * memory for length, memory in captions),
    )


def _memory(sample: Encoded, merge_size: int) -> int:
    """Entries of the head's memory: the student's image tokens, and the text before its answer."""
    return int(sample.grid_thw[-1].prod()) // merge_size**2 + sample.memory_end


def _squares(lengths: Iterable[int]) -> int:
    return sum(length * length for length in lengths)


def _pieces(length: int, piece: int) -> list[int]:
    return [piece] * (length // piece) + [length % piece]
