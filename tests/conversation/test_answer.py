import json
from functools import partial

import pytest

from bbu_train.conversation.answer import LAYOUTS, num_tokens, parse, render, token_ids
from bbu_train.conversation.order import ReadingOrder
from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object

COMPACT = LAYOUTS["compact"]
ROW = '{"bbox_2d": [1, 2, 3, 4], "label": "screw/wrong"}'
SCREW = Object((1.0, 2.0, 3.0, 4.0), "screw/wrong")


def render_boxes(*boxes, scale_x=1.0, scale_y=1.0, width=100, height=80):
    """Return the boxes of the answer for `boxes`."""
    objects = [Object(tuple(map(float, box)), "x") for box in boxes]
    return [
        row["bbox_2d"] for row in json.loads(render(objects, ReadingOrder(), COMPACT, scale_x, scale_y, width, height))
    ]


def read(text):
    parsed = parse(text, 1.0, 1.0)
    return list(parsed.objects), parsed.is_complete


def random_objects(random, width, height, num):
    """Boxes with positive area inside the picture, many of them thinner than a pixel, some along its edges."""
    objects = []
    for i in range(num):
        lows, highs = [], []
        for limit in (width, height):
            side = min(limit, 10 ** random.uniform(-3, 4))
            low = random.choice([0, limit - side, random.uniform(0, limit - side)])
            lows.append(float(low))
            highs.append(float(min(low + side, limit)))
        objects.append(Object((*lows, *highs), str(i)))
    return objects


@pytest.mark.parametrize("seed", range(30))
def test_boxes_survive_the_trip_through_the_answer_within_one_resized_pixel(seed):
    random = generator("answer", seed)
    width, height = random.integers(10, 6000, 2).tolist()
    resized_width, resized_height = (28 * random.integers(1, 60, 2)).tolist()
    scale_x, scale_y = resized_width / width, resized_height / height
    objects = random_objects(random, width, height, 100)
    parsed = parse(
        render(objects, ReadingOrder(), COMPACT, scale_x, scale_y, resized_width, resized_height), scale_x, scale_y
    )
    assert parsed.is_complete
    back = {item.description: item.box_xyxy for item in parsed.objects}
    for item in objects:
        for a, b, scale in zip(item.box_xyxy, back[item.description], (scale_x, scale_y) * 2, strict=True):
            assert abs(a - b) * scale <= 1 + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_rendered_boxes_are_whole_pixels_inside_the_picture_and_at_least_one_pixel_wide_and_high(seed):
    random = generator("inside", seed)
    for x1, y1, x2, y2 in render_boxes(*(item.box_xyxy for item in random_objects(random, 100, 80, 200))):
        assert all(isinstance(value, int) for value in (x1, y1, x2, y2))
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 80


def test_objects_lie_from_top_to_bottom_and_then_from_left_to_right():
    boxes = [(50, 5, 60, 9), (9, 30, 20, 40), (2, 5, 60, 9), (0, 30, 9, 40), (30, 0, 40, 80)]
    assert render_boxes(*boxes) == [[30, 0, 40, 80], [2, 5, 60, 9], [50, 5, 60, 9], [0, 30, 9, 40], [9, 30, 20, 40]]


def test_objects_are_ordered_by_their_rounded_boxes():
    assert render_boxes((50, 5.4, 60, 9), (2, 4.6, 9, 9)) == [[2, 5, 9, 9], [50, 5, 60, 9]]


def test_a_box_of_the_whole_picture_reaches_from_edge_to_edge():
    assert render_boxes((0, 0, 640, 480), scale_x=100 / 640, scale_y=80 / 480) == [[0, 0, 100, 80]]


@pytest.mark.parametrize(
    ("low", "high", "pixel"),
    [(10.1, 10.2, [10, 11]), (10.6, 10.7, [10, 11]), (9.9, 10.3, [10, 11]), (0, 0.1, [0, 1]), (79.8, 80, [79, 80])],
)
def test_a_box_thinner_than_a_pixel_becomes_the_pixel_that_holds_its_middle(low, high, pixel):
    assert render_boxes((low, low, high, high), width=80) == [[pixel[0], pixel[0], pixel[1], pixel[1]]]


def test_answers_are_laid_out_as_the_published_model_does_and_as_json_does():
    objects = [SCREW, Object((1.0, 3.0, 4.0, 5.0), "柜")]
    rows = [ROW, '{"bbox_2d": [1, 3, 4, 5], "label": "柜"}']
    published, compact = (
        render(objects, ReadingOrder(), LAYOUTS[name], 1.0, 1.0, 100, 80) for name in ("qwen", "compact")
    )
    assert published == f"```json\n[\n\t{rows[0]},\n\t{rows[1]}\n]\n```"
    assert compact == f"[{rows[0]}, {rows[1]}]" == json.dumps([json.loads(row) for row in rows], ensure_ascii=False)


def test_an_answer_without_objects_is_an_empty_list():
    assert render((), ReadingOrder(), COMPACT, 1.0, 1.0, 100, 80) == "[]"
    assert read("[]") == ([], True)


@pytest.mark.parametrize(
    "label",
    ["机柜空间/空", 'a "quoted" word', "back\\slash/\\n", "line\nbreak\ttab", "```json", "}]{[", "", "\u2028é😀"],
)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=[*LAYOUTS])
def test_any_label_survives(label, layout):
    item = Object((1.0, 2.0, 3.0, 4.0), label)
    for num_objects in range(3):
        text = render([item] * num_objects, ReadingOrder(), layout, 1.0, 1.0, 100, 80)
        assert read(text) == ([item] * num_objects, True)


def encode_and_note(tokenizer, pieces, piece):
    pieces.add(piece)
    return tokenizer.encode(piece)


@pytest.mark.parametrize(
    "label",
    [
        "screw/wrong",
        "柜 12  3",
        "two  2",
        " 7",
        '"bbox_2d": [1, 2, 3, 4], "label": ',
        "e\u0301 é 5",
        "\u0301",
        "",
        "9",
        "], 3",
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=[*LAYOUTS])
def test_an_answer_encoded_in_pieces_has_the_tokens_of_the_whole(label, layout):
    tokenizer = PlainTextTokenizer(tiny_tokenizer(768))
    boxes = ((0.0, 20.0, 300.0, 400.0), (7.0, 8.0, 99.0, 1000.0), (10.0, 20.0, 31.0, 40.0))
    for num_objects in range(4):
        arguments = [Object(box, label) for box in boxes[:num_objects]], ReadingOrder(), layout, 1.0, 1.0, 2000, 2000
        whole = render(*arguments)
        pieces: set[str] = set()
        assert token_ids(whole, partial(encode_and_note, tokenizer, pieces)) == tokenizer.encode(whole)
        assert len(pieces - set("0123456789")) <= 4  # around coordinates, and between them
        assert num_tokens(*arguments, lambda text: len(tokenizer.encode(text))) == len(tokenizer.encode(whole))


def test_labels_are_not_escaped():
    assert "机柜空间/空" in render(
        [Object((1.0, 2.0, 3.0, 4.0), "机柜空间/空")], ReadingOrder(), COMPACT, 1.0, 1.0, 100, 80
    )


@pytest.mark.parametrize("text", [f"```json\n[{ROW}]\n```", f"```\n[{ROW}]```", f" \n[{ROW}] ", f"```json [{ROW}]"])
def test_a_fenced_answer_is_complete(text):
    assert read(text) == ([SCREW], True)


def test_fractions_of_a_pixel_are_read():
    assert read('[{"bbox_2d": [0.5, 1e1, 20, 30.25], "label": "x"}]') == ([Object((0.5, 10.0, 20.0, 30.25), "x")], True)


def test_an_answer_gives_its_complete_objects_wherever_it_is_cut_off():
    text = f"[{ROW}, {ROW}]"
    for end in range(len(text)):
        objects, is_complete = read(text[:end])
        assert objects == [SCREW] * text[:end].count("}")
        assert not is_complete


@pytest.mark.parametrize("key", ["label", "desc", "text_content"])
def test_a_label_is_read_by_each_name_that_the_published_model_gives_it(key):
    assert read(f"```json\n[\n\t{ROW.replace('label', key)}\n]\n```") == ([SCREW], True)


def test_objects_are_found_between_other_words():
    assert read(f"I see {ROW}, then {{junk}} and {ROW}.") == ([SCREW, SCREW], False)


@pytest.mark.parametrize(
    "row",
    [
        "1",
        "null",
        '"x"',
        "[]",
        "{}",
        '{"label": "x"}',
        '{"bbox_2d": [1, 2, 3, 4]}',
        '{"bbox_2d": [1, 2, 3, 4], "label": 5}',
        '{"bbox_2d": [1, 2, 3, 4], "label": null}',
        '{"bbox_2d": [1, 2, 3], "label": "x"}',
        '{"bbox_2d": [1, 2, 3, 4, 5], "label": "x"}',
        '{"bbox_2d": "1234", "label": "x"}',
        '{"bbox_2d": {"0": 1}, "label": "x"}',
        '{"bbox_2d": ["1", 2, 3, 4], "label": "x"}',
        '{"bbox_2d": [[1], 2, 3, 4], "label": "x"}',
        '{"bbox_2d": [true, 2, 3, 4], "label": "x"}',
        '{"bbox_2d": [NaN, 2, 3, 4], "label": "x"}',
        '{"bbox_2d": [1, Infinity, 3, 4], "label": "x"}',
        '{"bbox_2d": [1, 2, -Infinity, 4], "label": "x"}',
        '{"bbox_2d": [1, 2, 3, 1e400], "label": "x"}',
        '{"bbox_2d": [1, 2, 3, 1e12], "label": "x"}',
        '{"bbox_2d": [1, 2, 3, ' + "9" * 400 + '], "label": "x"}',
        '{"bbox_2d": [1, 2, 3, ' + "9" * 5000 + '], "label": "x"}',
    ],
)
def test_json_that_is_not_an_object_is_skipped_and_makes_the_answer_incomplete(row):
    assert read(f"[{ROW}, {row}]") == ([SCREW], False)


@pytest.mark.parametrize("text", [ROW, f"[[{ROW}]]", f"[{ROW}] ["])
def test_an_object_outside_a_plain_list_is_read_but_incomplete(text):
    assert read(text) == ([SCREW], False)


@pytest.mark.parametrize("text", [f"[{ROW}, {ROW}]", f"```json\n[{ROW}]\n```", f'[{{"x": {ROW}}}, {ROW}, {ROW[:-9]}'])
def test_spans_are_the_offsets_of_the_objects(text):
    parsed = parse(text, 1.0, 1.0)
    assert parsed.objects
    assert [text[first:end] for first, end in parsed.spans] == [ROW] * len(parsed.objects)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "```json\n```",
        "no objects",
        "null",
        "3",
        "NaN",
        '"["',
        "{" * 500,
        "[" * 100_000,
        '{"a":' * 2_000,
        '[{"bbox_2d": ' * 500,
        "\ud800\x00",
    ],
)
def test_an_unreadable_answer_gives_no_objects_and_never_raises(text):
    assert read(text) == ([], False)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_answer_never_raises_and_never_invents_more_objects(seed):
    random = generator("damage", seed)
    text = f"```json\n[{ROW}, {ROW}]\n```"
    for _ in range(200):
        characters = list(text)
        for _ in range(random.integers(1, 6)):
            characters[random.integers(len(characters))] = random.choice(list('{}[]",:0-eN\\`\n x'))
        assert len(read("".join(characters))[0]) <= 2
