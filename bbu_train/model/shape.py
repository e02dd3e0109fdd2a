"""The sizes of a Qwen2.5-VL model, from the checkpoint's own config or, without a checkpoint, from the YAML."""

from typing import Any

from transformers import AutoConfig, Qwen2_5_VLConfig

from bbu_train.errors import InputError
from bbu_train.model.tiny_tokenizer import tiny_tokenizer


def configuration(checkpoint: str | None, weights: str, shape: dict[str, Any]) -> Qwen2_5_VLConfig:
    """Return the checkpoint's config for `weights="pretrained"`, and one made from `shape` for "random".

    `shape` must give every size, because the defaults of transformers' class are those of the 72B model. Control tokens
    then get their ids from the tiny tokenizer. Raise InputError if the checkpoint is not a Qwen2.5-VL model.
    """
    if weights == "random":
        config = Qwen2_5_VLConfig(**shape)
        control_ids = tiny_tokenizer(config.text_config.vocab_size).get_added_vocab()
        for name in ("image", "video"):
            setattr(config, f"{name}_token_id", control_ids[f"<|{name}_pad|>"])
        for name in ("start", "end"):
            setattr(config, f"vision_{name}_token_id", control_ids[f"<|vision_{name}|>"])
        return config
    config = AutoConfig.from_pretrained(checkpoint)
    if not isinstance(config, Qwen2_5_VLConfig):
        raise InputError(f"model.checkpoint={checkpoint} holds a {config.model_type} model; expected qwen2_5_vl.")
    return config
