"""Which Qwen2.5-VL it is: sizes from the checkpoint's own config, or from the YAML where there is no checkpoint."""

from typing import Any

from transformers import AutoConfig, Qwen2_5_VLConfig

from bbu_train.errors import InputError


def configuration(checkpoint: str | None, weights: str, shape: dict[str, Any]) -> Qwen2_5_VLConfig:
    """The model's config: the checkpoint's with `weights="pretrained"`, else `shape` as the YAML gives it.

    `shape` names every size: the defaults of transformers' class are those of the 72B model.
    """
    if weights == "random":
        return Qwen2_5_VLConfig(**shape)
    config = AutoConfig.from_pretrained(checkpoint)
    if not isinstance(config, Qwen2_5_VLConfig):
        raise InputError(f"model.checkpoint={checkpoint} holds a {config.model_type} model; expected qwen2_5_vl.")
    return config
