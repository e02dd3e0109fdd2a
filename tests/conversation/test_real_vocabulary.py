"""With Qwen's real vocabulary and its published chat template, our tokens are those of transformers."""

import itertools
import re
from pathlib import Path

import pytest
from conftest import build, configured
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.types.samples import Sample

VOCABULARY = Path(__file__).resolve().parents[2].parent / "shared/data/qwen_tokenizer"
pytestmark = pytest.mark.skipif(not VOCABULARY.is_dir(), reason=f"Qwen's vocabulary is not at {VOCABULARY}")

# chat_template.json of Qwen/Qwen2.5-VL-3B-Instruct, without its branches for videos and for numbered pictures.
TEMPLATE = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}\
{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
DESCRIPTIONS = (
    "screw/loose",
    "机柜空间/空、第３层。“已锁”",
    "👷🏽\u200d♀️ bbu 5G🔧",
    "e\u0301 é \u0301 ﬁ Ａ",
    'two  spaces, 12 34\t"quoted" back\\slash\nline',
    "], 3} ```json",
    "<|not_a_token|> </tool_call",
    "",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(VOCABULARY)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("layout", ["qwen", "compact"])
@pytest.mark.parametrize("language", ["english", "chinese"])
def test_a_conversation_has_the_tokens_of_the_published_template(
    language, layout, tokenizer, preprocessing, make_picture
):
    conversation = configured(f"conversation={language}", f"conversation.layout={layout}").conversation
    builder = build(conversation)(tokenizer, preprocessing.picture_format)
    limits = {key: getattr(preprocessing.picture_format, key) for key in ("min_pixels", "max_pixels")}
    processor = Qwen2VLImageProcessorPil(**limits)
    objects = [((i, 5 * i, 20 + i, 90), description) for i, description in enumerate(DESCRIPTIONS)]
    student, teacher = make_picture("student", 112, 95, *objects), make_picture("teacher", 90, 130, *objects[1:4])
    empty = make_picture("empty", 60, 60)
    for teachers in itertools.chain.from_iterable(itertools.permutations([teacher, empty], n) for n in range(3)):
        messages = [{"role": "system", "content": builder.system}]
        for picture in (*teachers, student):
            question = [{"type": "image"}, {"type": "text", "text": builder.question}]
            messages += [{"role": "user", "content": question}]
            messages += [{"role": "assistant", "content": builder.answer(picture)}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        sizes = iter([processor.get_number_of_image_patches(p.height, p.width) // 4 for p in (*teachers, student)])
        text = re.sub(r"<\|image_pad\|>", lambda match, sizes=sizes: match[0] * next(sizes), text)
        sample = Sample("student", student, teachers)
        encoded = builder.encode(builder.converse(sample, teachers, with_answer=True))
        assert encoded.input_ids.tolist() == tokenizer.encode(text)
        assert builder.num_tokens(sample, teachers) == len(encoded.input_ids)
