import hashlib
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from bbu_train.model.tiny_tokenizer import CONTROL_TOKENS, tiny_tokenizer

SENTENCES = [
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>List every object.<|im_end|>\n",
    '[{"bbox_2d": [10, 20, 30, 40], "label": "机柜空间/空"}]',
    "anything é 😀 \u2028 \x00 at\tall\r\n",
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(768)


def test_another_process_builds_the_same_tokenizer(tokenizer):
    program = (
        "import hashlib; from bbu_train.model.tiny_tokenizer import tiny_tokenizer\n"
        "print(hashlib.sha256(tiny_tokenizer(768).backend_tokenizer.to_str().encode()).hexdigest())"
    )
    # Use another hash seed and another number of threads.
    environment = os.environ | {"PYTHONHASHSEED": "5", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.strip() == hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def test_decoding_restores_any_text(tokenizer):
    for text in SENTENCES:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_saved_tokenizer_loads_unchanged(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.eos_token == "<|im_end|>"
    for text in SENTENCES:
        assert loaded.encode(text) == tokenizer.encode(text)


def test_control_tokens_have_the_last_ids(tokenizer):
    ids = [tokenizer.encode(token) for token in CONTROL_TOKENS]
    first = len(tokenizer) - len(CONTROL_TOKENS)
    assert ids == [[first + i] for i in range(len(CONTROL_TOKENS))]


@pytest.mark.parametrize("size", [300, 400, 768])
def test_the_vocabulary_does_not_exceed_its_limit(size):
    assert max(tiny_tokenizer(size).get_vocab().values()) < size


def test_a_larger_vocabulary_encodes_synthetic_answers_in_fewer_tokens():
    answer = '[{"bbox_2d": [10, 20, 30, 40], "label": "screw/wrong"}]'
    assert len(tiny_tokenizer(768).encode(answer)) < len(tiny_tokenizer(300).encode(answer))
