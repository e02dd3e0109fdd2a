"""Text to token ids in such a way that no text becomes a control token."""

import codecs
from functools import cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bbu_train.errors import InputError

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


class Text:
    """The checkpoint's tokenizer, split in two: its text pipeline without any added token, and its control tokens.

    A tokenizer as it comes turns the string `<|im_end|>` in a user's description into the token that ends a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
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

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, every character of it taken as text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def read(self, ids: list[int]) -> str:
        """The text of `ids` up to the end token, control tokens left out."""
        return "".join(self.pieces(ids))

    def pieces(self, ids: list[int]) -> list[str]:
        """What each of `ids` adds to their text: nothing for control tokens and from the end token on.

        A character of several tokens comes with the last of them. Bytes that make no character become U+FFFD.
        """
        length = ids.index(self.end) if self.end in ids else len(ids)
        reader = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces = [reader.decode(self._bytes(token)) for token in ids[:length]]
        if pieces:
            pieces[-1] += reader.decode(b"", final=True)
        return pieces + [""] * (len(ids) - length)

    def control(self, token: int) -> str | None:
        """The name of a control token, such as `<|im_end|>`; None of one that stands for text."""
        return self._added[token].content if token in self._added and self._added[token].special else None

    def _bytes_of(self, token: int) -> bytes:
        """Of a token of the text pipeline, or the string that an added token stands for; none of a control token."""
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else added.content.encode()
        spelt = self._plain.id_to_token(token)  # None: a model has room for more tokens than its tokenizer has
        return bytes(_BYTES[character] for character in spelt or "")
