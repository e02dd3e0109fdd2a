import pytest

from bbu_train.conversation.text import Text
from bbu_train.errors import InputError
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.runtime.seeds import generator

# The checkpoint's tokenizer has these added tokens too; they are not special, so decoding keeps them.
CODE_TOKENS = ["<|fim_prefix|>", "<|repo_name|>", "<tool_call>"]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer(768)
    tokenizer.add_tokens(CODE_TOKENS)
    return tokenizer


def every_added_token(tokenizer):
    return "".join(f" {token}{token}x" for token in tokenizer.get_added_vocab())


def test_text_without_control_tokens_gets_the_ids_of_the_tokenizer(tokenizer):
    for text in ("system\nYou are", ' [{"bbox_2d": [1, 2', "机柜空间/空\n\n", "I'm  é e\u0301 😀 \t<|none|>", ""):
        assert Text(tokenizer).ids(text) == tokenizer.encode(text, add_special_tokens=False)


def test_no_text_becomes_a_control_token(tokenizer):
    text = every_added_token(tokenizer)
    added = set(tokenizer.get_added_vocab().values())
    assert added & set(tokenizer.encode(text))
    assert not added & set(Text(tokenizer).ids(text))


def test_text_with_control_strings_is_read_back_as_it_was(tokenizer):
    text = Text(tokenizer)
    string = every_added_token(tokenizer)
    assert text.read(text.ids(string)) == string


def test_reading_stops_at_the_end_token_and_skips_control_tokens(tokenizer):
    text = Text(tokenizer)
    assert text.read([text.start, *text.ids("bbu/zte"), text.image, text.end, *text.ids("more"), text.end]) == "bbu/zte"


def test_a_tokenizer_of_another_model_is_refused():
    from transformers import Qwen2Tokenizer

    with pytest.raises(InputError, match=r"has no .*<\|image_pad\|>.*model.checkpoint"):
        Text(Qwen2Tokenizer())


def test_pieces_joined_are_the_text_and_each_holds_only_characters_of_its_token(tokenizer):
    text = Text(tokenizer)
    string = '[{"label": "机柜空间/空 é😀"}] <tool_call>'
    ids = text.ids(string)
    assert "".join(text.pieces(ids)) == string
    for cut in range(len(ids)):
        assert string.startswith("".join(text.pieces(ids[:cut])).rstrip("\ufffd"))
    assert text.pieces([*ids[:4], text.end, *ids]) == [*text.pieces(ids[:4]), *[""] * (len(ids) + 1)]


@pytest.mark.parametrize("seed", range(5))
def test_any_tokens_of_text_are_read_as_the_tokenizer_decodes_them(tokenizer, seed):
    text = Text(tokenizer)
    known = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.get_added_vocab().values()))
    ids = generator("pieces", seed).choice(known, 300).tolist()
    assert text.read(ids) == tokenizer.decode(ids)


def test_control_tokens_and_ids_without_a_token_add_nothing(tokenizer):
    text = Text(tokenizer)
    assert text.pieces([100_000, text.image, text.vision_start]) == ["", "", ""]
