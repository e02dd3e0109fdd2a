"""Text to token ids in such a way that no text becomes a control token."""

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from bbu_train.errors import InputError

_CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


class Text:
    """The checkpoint's tokenizer, split in two: its text pipeline without any added token, and its control tokens.

    A tokenizer as it comes turns the string `<|im_end|>` in a user's description into the token that ends a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        backend = tokenizer.backend_tokenizer
        self._plain = Tokenizer(backend.model)
        self._plain.normalizer = backend.normalizer
        self._plain.pre_tokenizer = backend.pre_tokenizer
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
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        return self._tokenizer.decode(ids, skip_special_tokens=True)
