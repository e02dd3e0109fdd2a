"""What a run reads, in numbers: a few lines for its first screen, and all of it for environment.json."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bbu_train.data.findings import ReaderCounts
from bbu_train.data.same_bytes import first_of_each
from bbu_train.data.splits import Splits
from bbu_train.runtime.file_names import printable
from bbu_train.runtime.wording import count_of, cut
from bbu_train.types.samples import Object, Sample, class_of

NUM_SHOWN = 5  # names listed on a line, of classes and of unused elements
MAX_SHOWN = 40  # characters of each
NO_COUNTS = ReaderCounts({}, {})


@dataclass(frozen=True)
class BoxSize:
    """A box by its sides in pixels, and the sample that has it."""

    width: float
    height: float
    sample: str


@dataclass(frozen=True)
class LongestDescription:
    """The first of the descriptions with the most characters, and the sample that has it."""

    num_characters: int
    text: str
    sample: str


@dataclass(frozen=True)
class SplitSummary:
    """The student pictures of one split, and their objects.

    num_pictures            all of them, repeated ones included
    num_empty               without an object after reading: annotated as empty, or all were left out
    num_unannotated         without annotation
    num_repeated            those whose bytes an earlier picture of the split has
    num_fixed_teachers      teacher pictures that the data fixes, over all samples
    num_objects             all of them
    num_difficult           objects that are not scored, and trained only if they are among `num_objects`
    num_objects_by_class    the most frequent class first
    smallest_box            by area; None without objects, like the next two
    largest_box             by area
    longest_description     in characters
    changed_objects         see `ReaderCounts`
    unused_elements         see `ReaderCounts`
    """

    num_pictures: int
    num_empty: int
    num_unannotated: int
    num_repeated: int
    num_fixed_teachers: int
    num_objects: int
    num_difficult: int
    num_objects_by_class: Mapping[str, int]
    smallest_box: BoxSize | None
    largest_box: BoxSize | None
    longest_description: LongestDescription | None
    changed_objects: Mapping[str, int]
    unused_elements: Mapping[str, int]


@dataclass(frozen=True)
class DataSummary:
    """Both splits by name, and the number of validation pictures that are also in training, as student or teacher."""

    splits: Mapping[str, SplitSummary]
    num_in_both: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the most important numbers: a line for each split, and what concerns both."""
        lines = [f"{name}: {_describe(split)}" for name, split in self.splits.items()]
        if self.num_in_both:
            lines.append(f"{count_of(self.num_in_both, 'picture')} in both")
        unused_by_split = [split.unused_elements for split in self.splits.values()]
        if unused := _first_few([*dict.fromkeys(map(_show, chain.from_iterable(unused_by_split)))]):
            lines.append(f"not used: {unused}")
        return lines


def summarize(data: Splits, first_path: Mapping[Path, Path]) -> DataSummary:
    """Count what the splits hold. `first_path` has, for each picture's path, the first one with the same bytes."""
    splits = {"train": data.train, "validation": data.validation}
    training = {first_path[path] for path in student_and_teacher_paths(data.train)}
    return DataSummary(
        {
            name: _summarize_split(samples, first_path, data.reader_counts.get(name, NO_COUNTS))
            for name, samples in splits.items()
        },
        sum(first_path[sample.student.path] in training for sample in data.validation),
    )


def paths_with_first(data: Splits) -> dict[Path, Path]:
    """Return, for the path of every student and fixed teacher, the first of these paths with the same bytes."""
    return first_of_each(student_and_teacher_paths((*data.train, *data.validation)))


def student_and_teacher_paths(samples: Sequence[Sample]) -> list[Path]:
    return [picture.path for sample in samples for picture in (sample.student, *(sample.teachers or ()))]


def _summarize_split(
    samples: Sequence[Sample], first_path: Mapping[Path, Path], reader_counts: ReaderCounts
) -> SplitSummary:
    annotations = [sample.student.objects for sample in samples]
    classes = Counter(class_of(each.description) for objects in annotations for each in objects or ())
    longest = _extreme(samples, lambda each: len(each.description))
    return SplitSummary(
        num_pictures=len(samples),
        num_empty=sum(objects is not None and not objects for objects in annotations),
        num_unannotated=sum(objects is None for objects in annotations),
        num_repeated=len(samples) - len({first_path[sample.student.path] for sample in samples}),
        num_fixed_teachers=sum(len(sample.teachers or ()) for sample in samples),
        num_objects=classes.total(),
        num_difficult=sum(
            each.is_difficult
            for sample in samples
            for each in (*(sample.student.objects or ()), *sample.student.ignored)
        ),
        num_objects_by_class=dict(classes.most_common()),
        smallest_box=_box_size(_extreme(samples, lambda each: -_area(each))),
        largest_box=_box_size(_extreme(samples, _area)),
        longest_description=longest
        and LongestDescription(len(longest[0].description), longest[0].description, longest[1]),
        changed_objects=dict(reader_counts.changed_objects),
        unused_elements=dict(reader_counts.unused_elements),
    )


def _extreme(samples: Sequence[Sample], key: Callable[[Object], float]) -> tuple[Object, str] | None:
    """Return the first object of greatest key, and the id of its sample; None if there are no objects."""
    best, found = -math.inf, None
    for sample in samples:
        for each in sample.student.objects or ():
            if (value := key(each)) > best:
                best, found = value, (each, sample.id)
    return found


def _area(each: Object) -> float:
    x1, y1, x2, y2 = each.box_xyxy
    return (x2 - x1) * (y2 - y1)


def _box_size(found: tuple[Object, str] | None) -> BoxSize | None:
    if found is None:
        return None
    x1, y1, x2, y2 = found[0].box_xyxy
    return BoxSize(x2 - x1, y2 - y1, found[1])


def _describe(split: SplitSummary) -> str:
    classes = split.num_objects_by_class
    class_counts = [f"{_show(name)} {count:,}" for name, count in classes.items()]
    text = f"{count_of(split.num_pictures, 'picture')} with {count_of(split.num_objects, 'object')}"
    if classes:
        text += f" of {count_of(len(classes), 'class', 'classes')} ({_first_few(class_counts)})"
    if split.smallest_box and split.largest_box:
        text += f", smallest box {_sides(split.smallest_box)}, largest {_sides(split.largest_box)} pixels"
    counts = {
        "without an object": split.num_empty,
        "unannotated": split.num_unannotated,
        "repeated": split.num_repeated,
    }
    text += "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    things = {"fixed teacher": split.num_fixed_teachers, "difficult object": split.num_difficult}
    text += "".join(f", {count_of(count, what)}" for what, count in things.items() if count)
    text += "".join(f", {count_of(count, 'object')} {what}" for what, count in split.changed_objects.items())
    return text


def _sides(box: BoxSize) -> str:
    return f"{box.width:.4g} x {box.height:.4g}"


def _first_few(names: Sequence[str]) -> str:
    more = [f"{len(names) - NUM_SHOWN} more"] if len(names) > NUM_SHOWN else []
    return ", ".join([*names[:NUM_SHOWN], *more])


def _show(name: str) -> str:
    return cut(printable(name), MAX_SHOWN)
