import re
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.conversation.answer import parse
from bbu_train.conversation.patches import read_patches
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.ops import boxes
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Role, Sample


@pytest.fixture(scope="module", params=[("english", "qwen"), ("english", "compact"), ("chinese", "qwen")], ids=" ".join)
def builder(request, config, preprocessing):
    language, layout = request.param
    cfg = config(f"conversation={language}", f"conversation.layout={layout}")
    return build(cfg, preprocessing, preprocessing.tokenizer)


@pytest.fixture(scope="module")
def samples(samples, make_picture):
    """The samples of all tests, and one in Chinese with quotes, a backslash and a line break."""
    student = make_picture("机柜", 95, 133, ((3, 4, 50, 60), "机柜空间/空"), ((1, 2, 3, 4), '标签/可读 "a\\b"\n'))
    return (*samples, Sample("e", student, (samples[0].student, student)))


def build(cfg, preprocessing, tokenizer):
    builder = instantiate(cfg.conversation, _convert_="all")
    return builder(tokenizer=tokenizer, picture_format=preprocessing.picture_format)


def encode(builder, sample, with_answer=True):
    return builder.encode(builder.converse(sample, sample.teachers, with_answer))


def render_template(builder, tokenizer, sample, with_answer=True):
    """Return what the tokenizer's own chat template writes, with its image placeholders expanded."""
    pictures = (*sample.teachers, sample.student)
    messages = [{"role": "system", "content": builder.system}]
    for picture in pictures:
        messages.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": builder.question}]})
        messages.append({"role": "assistant", "content": builder.answer(picture)})
    if not with_answer:
        messages.pop()
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not with_answer)
    limits = {"min_pixels": builder.picture_format.min_pixels, "max_pixels": builder.picture_format.max_pixels}
    processor = Qwen2VLImageProcessorPil(**limits)
    num_tokens = iter([processor.get_number_of_image_patches(p.height, p.width) // 4 for p in pictures])
    return re.sub(r"<\|image_pad\|>", lambda match: match[0] * next(num_tokens), text)


def test_training_ids_are_those_of_the_chat_template(builder, preprocessing, samples):
    for sample in samples:
        text = render_template(builder, preprocessing.tokenizer, sample)
        assert encode(builder, sample).input_ids.tolist() == preprocessing.tokenizer.encode(text)


def test_prediction_ids_are_those_of_the_chat_template_with_a_generation_prompt(builder, preprocessing, samples):
    for sample in samples:
        text = render_template(builder, preprocessing.tokenizer, sample, with_answer=False)
        assert encode(builder, sample, with_answer=False).input_ids.tolist() == preprocessing.tokenizer.encode(text)


def test_a_prediction_prompt_is_the_training_conversation_up_to_the_answer(builder, samples):
    for sample in samples:
        training, prompt = encode(builder, sample), encode(builder, sample, with_answer=False)
        assert prompt.memory_end == len(prompt.input_ids) == training.memory_end
        assert torch.equal(prompt.input_ids, training.input_ids[: training.memory_end])
        assert torch.equal(prompt.position_ids, training.position_ids[:, : training.memory_end])
        assert torch.equal(prompt.image_positions, training.image_positions)
        assert torch.equal(prompt.patches, training.patches)
        assert torch.equal(prompt.roles, training.roles[: training.memory_end])
        assert training.roles[training.memory_end] == Role.STUDENT


def test_roles_are_the_spans_between_assistant_and_end_of_the_rendered_text(builder, preprocessing, samples):
    for sample in samples:
        text = render_template(builder, preprocessing.tokenizer, sample)
        spans = [match.span(1) for match in re.finditer(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", text, re.DOTALL)]
        assert len(spans) == 1 + len(sample.teachers)
        expected = []
        for start, end in preprocessing.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]:
            inside = [i for i, span in enumerate(spans) if span[0] <= start and end <= span[1]]
            is_student = bool(inside) and inside[0] == len(spans) - 1
            expected.append(Role.STUDENT if is_student else Role.TEACHER if inside else Role.NONE)
        assert encode(builder, sample).roles.tolist() == expected


def test_the_answer_can_be_read_back_from_the_students_tokens(builder, samples):
    for sample in samples:
        encoded = encode(builder, sample)
        ids = encoded.input_ids[encoded.roles == Role.STUDENT].tolist()
        assert ids[-1] == builder.tokenizer.end
        assert builder.tokenizer.decode(ids) == builder.answer(sample.student)


def test_the_number_of_tokens_is_known_without_encoding(builder, samples):
    for sample in samples:
        for teachers in (sample.teachers, (), (samples[0].student, samples[1].student)):
            conversation = builder.converse(sample, teachers, with_answer=True)
            assert builder.num_tokens(sample, teachers) == len(builder.encode(conversation).input_ids)


def test_the_number_of_patches_of_each_picture_is_known_without_encoding(builder, samples):
    for sample in samples:
        assert builder.num_patches(sample, sample.teachers) == encode(builder, sample).grid_thw.prod(1).tolist()


def test_the_number_of_tokens_needs_no_picture_file(builder, samples, tmp_path):
    absent = replace(samples[0].student, path=tmp_path / "absent.png")
    sample = replace(samples[0], student=absent)
    assert builder.num_tokens(sample, (absent,)) == builder.num_tokens(samples[0], (samples[0].student,))


def test_pictures_lie_in_the_order_of_the_turns_and_the_student_is_last(builder, samples):
    for sample in samples:
        encoded = encode(builder, sample)
        pictures = [read_patches(picture, builder.picture_format) for picture in (*sample.teachers, sample.student)]
        assert torch.equal(encoded.patches, torch.cat(pictures))
        assert encoded.grid_thw.prod(dim=1).tolist() == list(map(len, pictures))


def test_image_positions_are_the_placeholders_between_vision_start_and_vision_end(builder, samples):
    for sample in samples:
        encoded = encode(builder, sample)
        assert len(encoded.image_positions) == len(encoded.patches) // 4
        assert set(encoded.input_ids[encoded.image_positions].tolist()) == {builder.tokenizer.image}
        spans = torch.tensor_split(encoded.image_positions, (encoded.grid_thw.prod(dim=1) // 4).cumsum(0)[:-1])
        for span in spans:
            assert encoded.input_ids[span[0] - 1] == builder.tokenizer.vision_start
            assert encoded.input_ids[span[-1] + 1] == builder.tokenizer.vision_end
            assert torch.equal(span, torch.arange(span[0], span[-1] + 1))


@pytest.mark.parametrize(
    "string", ["<|im_end|>", "<|image_pad|>", "<|endoftext|>", "<|im_start|>user\n", "<|fim_prefix|>"]
)
def test_a_control_string_in_a_description_stays_text(config, preprocessing, samples, string):
    tokenizer = tiny_tokenizer(768)
    tokenizer.add_tokens(["<|fim_prefix|>"])  # not special, as in the checkpoint's tokenizer
    builder = build(config(), preprocessing, tokenizer)
    description = f"label/{string}/{string}"
    student = samples[0].student
    picture = replace(student, objects=tuple(replace(item, description=description) for item in student.objects))
    encoded = encode(builder, Sample("control", picture, (picture,)))
    added = set(tokenizer.get_added_vocab().values())
    for role in (Role.TEACHER, Role.STUDENT):
        ids = encoded.input_ids[encoded.roles == role].tolist()
        assert added & set(ids) == {builder.tokenizer.end}
        assert ids.count(builder.tokenizer.end) == 1
        objects = parse(builder.tokenizer.decode(ids), 1.0, 1.0).objects
        assert [item.description for item in objects] == [description] * 3
    num_image_tokens = (encoded.input_ids == builder.tokenizer.image).sum()
    assert num_image_tokens == len(encoded.image_positions) == len(encoded.patches) // 4
    for caption in encoded.captions:
        assert added & set(caption.tolist()) == {builder.tokenizer.end}
        assert builder.tokenizer.decode(caption.tolist()) == description


def test_a_control_string_in_a_prompt_stays_text(builder, samples):
    conversation = builder.converse(samples[0], samples[0].teachers, with_answer=True)
    turns = tuple(replace(turn, prompt="<|im_end|><|image_pad|>") for turn in conversation.turns)
    for prompts in (conversation, replace(conversation, turns=turns)):
        num_ends = (builder.encode(prompts).input_ids == builder.tokenizer.end).sum()
        assert num_ends == 1 + 2 * len(conversation.turns)


def test_targets_are_the_students_boxes_and_descriptions_in_the_order_of_the_data(builder, samples):
    for sample in samples:
        encoded = encode(builder, sample)
        descriptions = [builder.tokenizer.decode(caption.tolist()) for caption in encoded.captions]
        assert descriptions == [item.description for item in sample.student.objects]
        assert all(caption[-1] == builder.tokenizer.end for caption in encoded.captions)
        assert encoded.boxes_cxcywh.shape == (len(descriptions), 4)


def test_target_boxes_come_back_to_the_pixels_of_the_original_within_half_a_pixel(builder, make_picture):
    random = generator("targets")
    for width, height in ((637, 411), (60, 900)):
        corners = [sorted(random.uniform(0, limit, 2)) for limit in (width, height) * 100]
        rows = [((x[0], y[0], x[1], y[1]), "x") for x, y in zip(corners[::2], corners[1::2], strict=True)]
        student = make_picture(f"crowd {width}", width, height, *rows)
        encoded = encode(builder, Sample("crowd", student, ()))
        back = boxes.scale(boxes.cxcywh_to_xyxy(encoded.boxes_cxcywh), width, height)
        assert (back - torch.tensor([box for box, _ in rows])).abs().max() < 0.5


def test_boxes_of_the_answer_are_pixels_of_the_resized_picture(builder, make_picture):
    # 800 x 400 holds more than max_pixels; 252 x 112 is the largest size that does not.
    picture = make_picture("wide", 800, 400, ((0, 0, 800, 400), "all"), ((400, 200, 800, 400), "quarter"))
    encoded = encode(builder, Sample("wide", picture, ()))
    _, height, width = (14 * encoded.grid_thw[0]).tolist()
    answer_boxes = [item.box_xyxy for item in parse(builder.answer(picture), 1.0, 1.0).objects]
    assert (width, height) != (800, 400)
    assert answer_boxes == [(0, 0, width, height), (width / 2, height / 2, width, height)]


def test_a_picture_annotated_as_empty_is_answered_with_an_empty_list_and_trains(builder, samples):
    sample = samples[2]
    assert sample.student.objects == ()
    encoded = encode(builder, sample)
    ids = encoded.input_ids[encoded.roles == Role.STUDENT].tolist()
    assert ids == [*builder.tokenizer.encode(builder.layout.empty), builder.tokenizer.end]
    assert parse(builder.layout.empty, 1.0, 1.0).is_complete
    assert encoded.annotated
    assert encoded.boxes_cxcywh.shape == (0, 4)
    assert encoded.captions == ()


def test_a_picture_without_annotation_has_a_prompt_and_no_answer(builder, samples):
    sample = Sample("new", replace(samples[0].student, objects=None), samples[0].teachers)
    encoded = encode(builder, sample, with_answer=False)
    assert not encoded.annotated
    assert Role.STUDENT not in encoded.roles
    with pytest.raises(AssertionError, match="not annotated"):
        encode(builder, sample)


def test_an_unsupervised_conversation_keeps_its_tokens_and_pixels_and_loses_its_targets(builder, samples):
    encoded = encode(builder, samples[0])
    unsupervised = encoded.unsupervised()
    for name in ("input_ids", "position_ids", "image_positions", "patches", "grid_thw"):
        assert torch.equal(getattr(unsupervised, name), getattr(encoded, name))
    assert unsupervised.memory_end == encoded.memory_end
    assert not unsupervised.roles.any()
    assert (unsupervised.boxes_cxcywh.shape, unsupervised.captions, unsupervised.annotated) == ((0, 4), (), False)
