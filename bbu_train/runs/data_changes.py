"""What has changed in a data set between two of its records."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

NUM_SHOWN = 5  # of each kind


def describe(before: Iterable[Any], now: Iterable[Any]) -> list[str]:
    """Return what was added, removed and changed: annotations of each split, then pictures, each with the first five.

    Both arguments are the rows of a record (`data_record`).
    """
    old, new = _by_split(before), _by_split(now)
    texts = [text for split in old | new for text in _annotations(split, old.get(split, []), new.get(split, []))]
    texts += _pictures(_facts(old), _facts(new))
    return texts or [f"the order of {split}" for split in old if old[split] != new.get(split)]


def _by_split(rows: Iterable[Any]) -> dict[str, list[Any]]:
    """Return [label, hash, pictures] of the annotations of each split."""
    splits: dict[str, list[Any]] = {}
    annotations: list[Any] = []
    for row in rows:
        if isinstance(row, dict) and "split" in row:
            annotations = splits.setdefault(row["split"], [])
        elif isinstance(row, list):
            annotations.append([row[0], row[1], [(name, times[0], digest) for digest, times, name, *_ in row[3]]])
    return splits


def _annotations(split: str, old: list[Any], new: list[Any]) -> Iterator[str]:
    """Yield which annotations of a split were removed, added or changed: removed and added, of the same pictures."""
    removed, added = list(_without(old, new)), list(_without(new, old))
    subjects = set(map(_subject, removed)) & set(map(_subject, added))
    yield from _kind(split, "removed", [_show(each) for each in removed if _subject(each) not in subjects])
    yield from _kind(split, "added", [_show(each) for each in added if _subject(each) not in subjects])
    yield from _kind(split, "changed", [_show(each) for each in added if _subject(each) in subjects])


def _without(annotations: list[Any], others: list[Any]) -> Iterator[Any]:
    """Yield the annotations that are not in `others`, in any position. Those with a file are compared by name, too."""
    left = Counter(_content(each) for each in others)
    for each in annotations:
        if left[_content(each)]:
            left[_content(each)] -= 1
        else:
            yield each


def _content(annotation: Any) -> tuple[str, str]:
    label, digest, _ = annotation
    return (label if isinstance(label, str) else "", digest)


def _subject(annotation: Any) -> tuple[str, ...]:
    label, _, pictures = annotation
    return tuple(name for name, _, _ in pictures) if isinstance(label, int) and pictures else (f"{label}",)


def _show(annotation: Any) -> str:
    label, _, pictures = annotation
    if isinstance(label, str):
        return label
    return f"line {label}" + (f" ({', '.join(name for name, _, _ in pictures)})" if pictures else "")


def _facts(splits: dict[str, list[Any]]) -> dict[str, tuple[int, str]]:
    """Return size and hash of each picture that exists."""
    named = (picture for annotations in splits.values() for _, _, pictures in annotations for picture in pictures)
    return {name: (size, digest) for name, size, digest in named if size >= 0}


def _pictures(old: dict[str, tuple[int, str]], new: dict[str, tuple[int, str]]) -> Iterator[str]:
    yield from _kind("pictures", "removed", [name for name in old if name not in new])
    yield from _kind("pictures", "added", [name for name in new if name not in old])
    changed = [name for name in old if name in new and old[name] != new[name]]
    sizes = {name: (old[name][0], new[name][0]) for name in changed}
    texts = [f"{name} ({was} bytes, now {now})" if was != now else name for name, (was, now) in sizes.items()]
    yield from _kind("pictures", "changed", texts)


def _kind(what: str, change: str, names: list[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
        yield f"{what}: {len(names)} {change}: {', '.join(names[:NUM_SHOWN])}{more}"
