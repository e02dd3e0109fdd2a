"""What readers of annotated pictures find wrong, what they do about it, and one report of it all."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from bbu_train.errors import all_problems
from bbu_train.runtime.config_folder import config_folder
from bbu_train.runtime.wording import count_of

logger = logging.getLogger(__name__)


class Action(Enum):
    """What happens because of a finding. BAD_BOX is an error that another value of data.bad_boxes resolves."""

    ERROR = "error"
    BAD_BOX = "bad box"
    DROPPED = "dropped"
    CLIPPED = "clipped"
    NOTED = "noted"


class Finding(NamedTuple):
    """Something wrong or suspicious in the data.

    text    where it is and what it is, for a person
    reason  its kind, by which findings are counted and listed
    """

    action: Action
    text: str
    reason: str


@dataclass(frozen=True)
class ReaderCounts:
    """What a reader did with the files of one split, in numbers.

    changed_objects  objects that it left out or cut, by action and reason, such as {"dropped: zero area": 2}
    unused_elements  keys or XML elements that it does not use, such as {"object/pose": 40}
    """

    changed_objects: Mapping[str, int]
    unused_elements: Mapping[str, int]


def count_changed_objects(findings: Iterable[Finding]) -> dict[str, int]:
    """Return the number of objects that were left out or cut, by action and reason, such as "dropped: zero area"."""
    changes = (Action.DROPPED, Action.CLIPPED)
    return dict(Counter(f"{each.action.value}: {each.reason}" for each in findings if each.action in changes))


def describe_format(data_format: str) -> str:
    """Say where the format of a choice of conf/data is described."""
    return f"{config_folder() / 'data' / data_format}.yaml describes the format."


def raise_or_log(root: Path, findings: Sequence[Finding], data_format: str) -> None:
    """Log each kind of finding as one warning with its count and first place, and every finding as a debug message.

    Raises InputError with the errors instead, if there are any. `data_format` is the choice of conf/data whose file
    describes the format.
    """
    errors = [finding for finding in findings if finding.action in (Action.ERROR, Action.BAD_BOX)]
    if errors:
        remedy = f"Lines and objects are counted from 1. {describe_format(data_format)}"
        if any(finding.action is Action.BAD_BOX for finding in errors):
            remedy += (
                " data.bad_boxes=drop leaves out the bad boxes, and data.bad_boxes=clip cuts boxes at the edges of "
                "their picture; both count and log them."
            )
        texts, kinds = [finding.text for finding in errors], [finding.reason for finding in errors]
        raise all_problems(f"The data in {root}", texts, remedy, kinds)
    counts: Counter[tuple[Action, str]] = Counter((finding.action, finding.reason) for finding in findings)
    first: dict[tuple[Action, str], str] = {}
    for finding in findings:
        first.setdefault((finding.action, finding.reason), finding.text)
        logger.debug("%s: %s", finding.action.value, finding.text)
    for (action, reason), number in counts.items():
        is_note = action is Action.NOTED
        things = count_of(number, "annotation") if is_note else f"{action.value} {count_of(number, 'object')}"
        logger.warning("%s: %s: %s. First: %s", root, things, reason, first[action, reason])
