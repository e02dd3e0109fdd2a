"""Text to token ids, such that no text can become a control token."""

import codecs
from functools import cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bbu_train.errors import InputError

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


class PlainTextTokenizer:
    """The checkpoint's tokenizer, split in two: its text pipeline without added tokens, and the ids of control tokens.

    The tokenizer itself would turn the string `<|im_end|>` in a user's description into the token that ends a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = tokenizer.backend_tokenizer
        self._plain = Tokenizer(backend.model)
        self._plain.normalizer = backend.normalizer
        self._plain.pre_tokenizer = backend.pre_tokenizer
        self._added = tokenizer.added_tokens_decoder
        self._bytes = cache(self._bytes_of)
        added = tokenizer.get_added_vocab()
        missing = [token for token in _CONTROL if token not in added]
        if missing:
            raise InputError(
                f"The tokenizer of {tokenizer.name_or_path} has no {', '.join(missing)}: it is not Qwen2.5-VL's. "
                "Point model.checkpoint at a Qwen2.5-VL checkpoint."
            )
        self.start, self.end, self.vision_start, self.vision_end, self.image = (added[token] for token in _CONTROL)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`. Strings such as `<|im_end|>` are encoded as text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids` up to the end token, without control tokens."""
        return "".join(self.pieces(ids))

    def pieces(self, ids: list[int]) -> list[str]:
        """Return what each of `ids` adds to their text: "" for control tokens and from the end token on.

        If a character is spread over several tokens, it is in the piece of the last one, and the pieces of the others
        are "". Bytes that form no character become U+FFFD.
        """
        length = ids.index(self.end) if self.end in ids else len(ids)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces = [decoder.decode(self._bytes(token)) for token in ids[:length]]
        if pieces:
            pieces[-1] += decoder.decode(b"", final=True)
        return pieces + [""] * (len(ids) - length)

    def control(self, token: int) -> str | None:
        """Return the name of a control token, such as `<|im_end|>`, or None for a text token."""
        return self._added[token].content if token in self._added and self._added[token].special else None

    def _bytes_of(self, token: int) -> bytes:
        """Return the bytes of a text token, or of the string of an added token; b"" for a control token."""
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else added.content.encode()
        characters = self._plain.id_to_token(token)  # None for the model's ids beyond the tokenizer's vocabulary
        return bytes(_BYTES[character] for character in characters or "")
