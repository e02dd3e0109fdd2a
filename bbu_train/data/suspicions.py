"""What is suspicious in data that can be read: each kind as one warning with its number and its first place."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unicodedata import category

from bbu_train.data.boxes import Box, format_box
from bbu_train.data.splits import Splits
from bbu_train.runtime.file_names import printable
from bbu_train.runtime.wording import count_of, cut
from bbu_train.types.samples import Object, Picture, Sample, class_of

MAX_SHOWN = 60  # characters of a description
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}  # as Chinese keyboards write ASCII


def find_suspicions(data: Splits, first_path: Mapping[Path, Path]) -> list[str]:
    """Return a warning for each kind. `first_path` has, for each picture's path, the first one with the same bytes."""
    splits = {"train": data.train, "validation": data.validation}
    samples = (*data.train, *data.validation)
    by_split = [
        warning
        for name, split in splits.items()
        for warning in (_without_objects(name, split), *_thin_boxes(name, split))
    ]
    both = () if data.train is data.validation else (*_classes_of_one_split(splits), _in_both_splits(data, first_path))
    found = [
        *by_split,
        *both,
        _spellings(samples),
        _odd_descriptions(samples),
        _identical_objects(samples),
        _contradictions(samples, first_path),
    ]
    return [warning for warning in found if warning]


def _without_objects(name: str, samples: Sequence[Sample]) -> str | None:
    """Difficult objects do not count in validation, where they are not scored."""
    counted = [each for _, each in _objects(samples) if name == "train" or not each.is_difficult]
    if not samples or counted:
        return None
    harm = "a model learns to find nothing" if name == "train" else "AP and F1 are without meaning"
    kind = "object" if name == "train" else "object that is scored"
    return f"{name}: {count_of(len(samples), 'picture')} without an {kind}, so {harm}. First: {samples[0].id}"


def _thin_boxes(name: str, samples: Sequence[Sample]) -> Iterator[str]:
    """Tell boxes that were divided by the size of their picture from others of less than a pixel."""
    boxes = [(sample.id, each.box_xyxy) for sample, each in _annotated(samples)]
    divided = [box for box in boxes if max(box[1]) <= 1]
    thin = [box for box in boxes if _shorter_side(box[1]) < 1 < max(box[1])]
    thin = (
        thin if len(thin) + len(divided) == len(boxes) else []
    )  # beside boxes of normal size, a thin one is taken for real
    pixels = "Boxes are in pixels of the upright picture"
    for found, what, hint in (
        (divided, "within the top left pixel", f"{pixels}: were these divided by its size?"),
        (thin, "less than a pixel wide or high", f"{pixels}."),
    ):
        if found:
            sample_id, box = found[0]
            yield f"{name}: {len(found)} of {len(boxes)} boxes are {what}. {hint} First: {sample_id} {format_box(box)}"


def _classes_of_one_split(splits: Mapping[str, Sequence[Sample]]) -> Iterator[str]:
    first: dict[str, dict[str, str]] = {name: {} for name in splits}
    for name, samples in splits.items():
        for sample, each in _objects(samples):
            if name == "validation" and each.is_difficult:
                continue
            first[name].setdefault(class_of(each.description), sample.id)
    harms = {"train": "not scored", "validation": "without an example to learn from"}
    for name, other in (("train", "validation"), ("validation", "train")):
        only = [text for text in first[name] if text not in first[other]]
        if only and first[other]:  # a split without objects has a warning of its own
            yield (
                f"{_are(only, 'class', 'classes')} in {name} but not in {other}, and {harms[name]}. "
                f"First: {_quote(only[0])} in {first[name][only[0]]}"
            )


def _in_both_splits(data: Splits, first_path: Mapping[Path, Path]) -> str | None:
    training: dict[Path, tuple[str, Path]] = {}
    for sample in data.train:
        for picture in _pictures(sample):
            training.setdefault(first_path[picture.path], (sample.id, picture.path))
    shared = [sample for sample in data.validation if first_path[sample.student.path] in training]
    if not shared:
        return None
    first = shared[0]
    train_id, train_path = training[first_path[first.student.path]]
    names = [printable(path.name) for path in (first.student.path, train_path)]
    return (
        f"{_are(shared, 'validation picture')} also in training, so scores say less about unseen pictures. "
        f"First: {names[0]} (validation, {first.id}) is {names[1]} (train, {train_id})"
    )


def _spellings(samples: Sequence[Sample]) -> str | None:
    """Compare each level of the descriptions below the same levels, such as "screw/M4" and "screw/m4"."""
    first = {}
    for sample, each in _annotated(samples):
        first.setdefault(each.description, sample.id)
    spelled: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for description, sample_id in first.items():
        levels = description.split("/")
        keys = tuple(map(_without_case_and_blanks, levels))
        for depth, level in enumerate(levels):
            spelled[keys[: depth + 1]].setdefault(level, sample_id)
    several = [spellings for spellings in spelled.values() if len(spellings) > 1]
    if not several:
        return None
    (one, in_one), (other, in_other) = list(several[0].items())[:2]
    return (
        f"{_are(several, 'level of descriptions', 'levels of descriptions')} spelled in several ways, which differ "
        "only in case, blanks, width or invisible characters. First: "
        f"{_quote(one)} in {in_one}, {_quote(other)} in {in_other}"
    )


def _odd_descriptions(samples: Sequence[Sample]) -> str | None:
    odd = [(sample.id, each.description) for sample, each in _annotated(samples) if _is_odd(each.description)]
    if not odd:
        return None
    sample_id, description = odd[0]
    what = "with an empty level (a slash too many) or a control character"
    return f"{count_of(len(odd), 'description')} {what}. First: {_quote(description)} in {sample_id}"


def _is_odd(description: str) -> bool:
    return not all(description.split("/")) or (not description.isprintable() and printable(description) != description)


def _identical_objects(samples: Sequence[Sample]) -> str | None:
    num_by_sample: Counter[str] = Counter()
    for sample in samples:
        for picture in _pictures(sample):
            objects = picture.objects or ()
            if repeated := len(objects) - len({(each.box_xyxy, each.description) for each in objects}):
                num_by_sample[sample.id] += repeated
    if not num_by_sample:
        return None
    first, objects = next(iter(num_by_sample)), count_of(num_by_sample.total(), "object")
    return f"{objects} with the same box and description as another of its picture. First: {first}"


def _contradictions(samples: Sequence[Sample], first_path: Mapping[Path, Path]) -> str | None:
    """Compare all annotations of the same bytes, those of fixed teachers included."""
    pictures = [(first_path[picture.path], sample.id, picture) for sample in samples for picture in _pictures(sample)]
    num_uses = Counter(path for path, _, _ in pictures)
    annotations: dict[Path, dict[tuple[object, ...], str]] = defaultdict(dict)
    for path, sample_id, picture in pictures:
        if num_uses[path] > 1 and picture.objects is not None:
            objects = sorted((each.box_xyxy, each.description) for each in (*picture.objects, *picture.ignored))
            annotations[path].setdefault(tuple(objects), sample_id)
    several = {path: found for path, found in annotations.items() if len(found) > 1}
    if not several:
        return None
    path, found = next(iter(several.items()))
    places = " and ".join(list(found.values())[:2])
    pictures = "1 picture has" if len(several) == 1 else f"{len(several):,} pictures have"
    return f"{pictures} several annotations that differ. First: {printable(path.name)} in {places}"


def _objects(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Object]]:
    return ((sample, each) for sample in samples for each in sample.student.objects or ())


def _annotated(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Object]]:
    """Yield the objects of students and of fixed teachers, which are in the prompt and trained."""
    return ((sample, each) for sample in samples for picture in _pictures(sample) for each in picture.objects or ())


def _pictures(sample: Sample) -> tuple[Picture, ...]:
    return sample.student, *(sample.teachers or ())


def _shorter_side(box_xyxy: Box) -> float:
    x1, y1, x2, y2 = box_xyxy
    return min(x2 - x1, y2 - y1)


def _without_case_and_blanks(text: str) -> str:
    """Return a text in lower case, without blanks and invisible characters, and with no character in full width."""
    visible = [character for character in text.translate(FULL_WIDTH) if category(character) != "Cf"]
    return "".join("".join(visible).lower().split())


def _are(things: Sequence[object], noun: str, plural: str = "") -> str:
    """Return the number of things with its verb, such as "3 classes are"."""
    return f"{count_of(len(things), noun, plural)} {'is' if len(things) == 1 else 'are'}"


def _quote(text: str) -> str:
    visible = [f"\\u{ord(each):04x}" if category(each) == "Cf" else each for each in cut(text, MAX_SHOWN)]
    return f'"{printable("".join(visible))}"'
