"""The shapes in conf/model are those of the published checkpoints."""

import pytest
import torch
from omegaconf import OmegaConf
from transformers import Qwen2_5_VLForConditionalGeneration

from bbu_train.model.shape import configuration

PUBLISHED = {"qwen25vl3b": 3_754_622_976, "qwen25vl7b": 8_292_166_656}  # parameters, from the checkpoints' indexes


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_random_model_has_as_many_parameters_as_the_published_one(config, name):
    model = config(f"model={name}", "model.weights=random").model
    shape = configuration(model.checkpoint, model.weights, OmegaConf.to_container(model.shape))
    with torch.device("meta"):
        backbone = Qwen2_5_VLForConditionalGeneration(shape)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == PUBLISHED[name]
