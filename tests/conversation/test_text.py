import pytest

from bbu_train.conversation.text import PlainTextTokenizer
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
        assert PlainTextTokenizer(tokenizer).encode(text) == tokenizer.encode(text, add_special_tokens=False)


def test_no_text_becomes_a_control_token(tokenizer):
    text = every_added_token(tokenizer)
    added = set(tokenizer.get_added_vocab().values())
    assert added & set(tokenizer.encode(text))
    assert not added & set(PlainTextTokenizer(tokenizer).encode(text))


def test_text_with_control_strings_is_read_back_as_it_was(tokenizer):
    plain = PlainTextTokenizer(tokenizer)
    string = every_added_token(tokenizer)
    assert plain.decode(plain.encode(string)) == string


def test_reading_stops_at_the_end_token_and_skips_control_tokens(tokenizer):
    plain = PlainTextTokenizer(tokenizer)
    ids = [plain.start, *plain.encode("bbu/zte"), plain.image, plain.end, *plain.encode("more"), plain.end]
    assert plain.decode(ids) == "bbu/zte"


def test_a_tokenizer_of_another_model_is_refused():
    from transformers import Qwen2Tokenizer

    with pytest.raises(InputError, match=r"has no .*<\|image_pad\|>.*model.checkpoint"):
        PlainTextTokenizer(Qwen2Tokenizer())


def test_pieces_joined_are_the_text_and_each_holds_only_characters_of_its_token(tokenizer):
    plain = PlainTextTokenizer(tokenizer)
    string = '[{"label": "机柜空间/空 é😀"}] <tool_call>'
    ids = plain.encode(string)
    assert "".join(plain.pieces(ids)) == string
    for cut in range(len(ids)):
        assert string.startswith("".join(plain.pieces(ids[:cut])).rstrip("\ufffd"))
    assert plain.pieces([*ids[:4], plain.end, *ids]) == [*plain.pieces(ids[:4]), *[""] * (len(ids) + 1)]


@pytest.mark.parametrize("seed", range(5))
def test_any_tokens_of_text_are_read_as_the_tokenizer_decodes_them(tokenizer, seed):
    plain = PlainTextTokenizer(tokenizer)
    known = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.get_added_vocab().values()))
    ids = generator("pieces", seed).choice(known, 300).tolist()
    assert plain.decode(ids) == tokenizer.decode(ids)


def test_control_tokens_and_ids_without_a_token_add_nothing(tokenizer):
    plain = PlainTextTokenizer(tokenizer)
    assert plain.pieces([100_000, plain.image, plain.vision_start]) == ["", "", ""]
