"""The pictures of an encoded conversation as the model sees them: from the patches and targets that it is given."""

import base64
import io
from collections.abc import Iterator, Sequence
from itertools import groupby

from PIL import Image

from bbu_train.conversation import answer
from bbu_train.conversation.patches import to_images
from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.images import fonts
from bbu_train.images.colors import ClassColors, Color
from bbu_train.images.marks import Mark, shorten
from bbu_train.images.sheet import Entry, Panel, cell_size, class_entries, draw_panel, full_size, make_sheet
from bbu_train.ops import boxes
from bbu_train.runtime.wording import count_of
from bbu_train.types.batch import Encoded
from bbu_train.types.samples import PictureFormat, Role, class_of

CELL = 480  # pixels of the longer side of a picture in the sheet
EMBEDDED = 560  # pixels of the longer side of a picture in a page, at most
QUALITY = 80  # of a JPEG in a page
TEACHER: Color = (147, 197, 253)
STUDENT: Color = (252, 211, 77)
Label = tuple[tuple[float, float, float, float], str]


def panels_of(
    encoded: Encoded, picture_format: PictureFormat, tokenizer: PlainTextTokenizer, colors: ClassColors
) -> list[Panel]:
    """Return each picture of a conversation: its teachers, with the objects of their answers, then its student.

    The student's objects are the targets of the head. Nothing is read from files: what was cropped, resized, mirrored
    or recoloured shows as the model sees it.
    """
    *teachers, student = to_images(encoded.patches, encoded.grid_thw, picture_format)
    labels = [*_teachers_objects(encoded, tokenizer), _students_objects(encoded, tokenizer, student)]
    fonts.check(text for objects in labels for _, text in objects)
    panels = []
    for number, (image, objects) in enumerate(zip([*teachers, student], labels, strict=True), start=1):
        is_student = number == len(labels)
        count = count_of(len(objects), "object") if objects else "no objects"
        if is_student and not encoded.annotated:
            count = "not annotated"
        role = "student" if is_student else f"teacher {number}"
        caption = f"{role}, {count}: {encoded.sample_id}, {image.width} x {image.height} pixels"
        panels.append(Panel(image, _marks(objects, colors), caption, STUDENT if is_student else TEACHER))
    return panels


def sheet(panels: Sequence[Panel], colors: ClassColors, title: str) -> Image.Image:
    """Return the panels in an even grid. The legend has the borders of teachers and students."""
    roles = [Entry("student", STUDENT, None)]
    if any(panel.border == TEACHER for panel in panels):
        roles.append(Entry("teacher: an example that the model reads before the student", TEACHER, None))
    return make_sheet(panels, cell_size(panels, CELL), title, [*roles, *class_entries(panels, colors)], 1)


def as_values(panel: Panel) -> dict[str, str]:
    """Return what a page shows: the role, the caption, and the picture with its boxes as a JPEG in the page itself."""
    width, height = full_size(panel.image)
    factor = min(1, EMBEDDED / max(width, height))
    file = io.BytesIO()
    draw_panel(panel, (round(factor * width), round(factor * height)), 1).save(file, "JPEG", quality=QUALITY)
    data = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"role": "student" if panel.border == STUDENT else "teacher", "caption": panel.caption, "data": data}


def _teachers_objects(encoded: Encoded, tokenizer: PlainTextTokenizer) -> Iterator[list[Label]]:
    """Yield the objects of each teacher's answer, in pixels of its picture."""
    tokens = zip(encoded.input_ids.tolist(), encoded.roles.tolist(), strict=True)
    for role, group in groupby(tokens, key=lambda token_role: token_role[1]):
        if role == Role.TEACHER:
            parsed = answer.parse(tokenizer.decode([token for token, _ in group]), 1, 1)
            yield [(item.box_xyxy, item.description) for item in parsed.objects]


def _students_objects(encoded: Encoded, tokenizer: PlainTextTokenizer, image: Image.Image) -> list[Label]:
    """Return the targets of the head, in pixels of the student's picture."""
    targets = boxes.cxcywh_to_xyxy(boxes.scale(encoded.boxes_cxcywh, image.width, image.height)).tolist()
    return [
        (tuple(box), tokenizer.decode(caption.tolist())) for box, caption in zip(targets, encoded.captions, strict=True)
    ]


def _marks(objects: Sequence[Label], colors: ClassColors) -> list[Mark]:
    return [Mark(box, shorten(text), class_of(text), colors[class_of(text)], True) for box, text in objects]
