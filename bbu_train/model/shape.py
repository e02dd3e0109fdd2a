"""Which Qwen2.5-VL it is: sizes from the checkpoint's own config, or from the YAML where there is no checkpoint."""

from typing import Any

from transformers import AutoConfig, Qwen2_5_VLConfig

from bbu_train.errors import InputError
from bbu_train.model.tiny_tokenizer import tiny_tokenizer


def configuration(checkpoint: str | None, weights: str, shape: dict[str, Any]) -> Qwen2_5_VLConfig:
    """The model's config: the checkpoint's with `weights="pretrained"`, else `shape` as the YAML gives it.

    `shape` names every size: the defaults of transformers' class are those of the 72B model. With it the control
    tokens are those of the tokenizer made in code.
    """
    if weights == "random":
        config = Qwen2_5_VLConfig(**shape)
        control = tiny_tokenizer(config.text_config.vocab_size).get_added_vocab()
        for name in ("image", "video"):
            setattr(config, f"{name}_token_id", control[f"<|{name}_pad|>"])
        for name in ("start", "end"):
            setattr(config, f"vision_{name}_token_id", control[f"<|vision_{name}|>"])
        return config
    config = AutoConfig.from_pretrained(checkpoint)
    if not isinstance(config, Qwen2_5_VLConfig):
        raise InputError(f"model.checkpoint={checkpoint} holds a {config.model_type} model; expected qwen2_5_vl.")
    return config
