"""A small tokenizer of the same kind as Qwen2.5-VL's, built in milliseconds without a download."""

import json

from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

# In the order of Qwen2.5-VL's vocabulary.
CONTROL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The merges are learned from this text. It has the words of prompts and of answers about telecom equipment.
TEXT = (
    "system user assistant You are an inspector of telecom equipment rooms.",
    "List every object in this picture as JSON with bbox_2d and label.",
    '[{"bbox_2d": [10, 20, 30, 40], "label": "bbu/huawei"}, {"bbox_2d": [1, 2, 3, 4], "label": "screw/correct"}]',
    "bbu/huawei bbu/zte bbu/ericsson bbu/nokia screw/correct screw/wrong connector/correct connector/wrong",
    "wind baffle/present wind baffle/missing label/readable text label/blank slot/empty slot/filled cabinet cable",
    "你是通信机房的设备检查员。用 JSON 列出图中的每个目标，给出 bbox_2d 和 label。",
    "BBU设备/华为 BBU设备/中兴 BBU设备/爱立信 BBU设备/诺基亚 螺丝/正确 螺丝/错误 连接点/正确 挡风板/存在 挡风板/缺失",
    "标签/可读 标签/空白 机柜空间/空 机柜空间/满 线缆",
)


def tiny_tokenizer(vocabulary_size: int) -> Qwen2Tokenizer:
    """Return Qwen2's byte-level BPE with merges learned from TEXT, Qwen2.5-VL's control tokens and chat template.

    It has at most `vocabulary_size` tokens, the control tokens last, and is the same at every call on any machine.
    """
    untrained = Qwen2Tokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = untrained.normalizer, untrained.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(CONTROL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(TEXT, trainer)
    bpe = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=bpe["vocab"], merges=[tuple(merge) for merge in bpe["merges"]])
    tokenizer.add_tokens(CONTROL_TOKENS, special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
