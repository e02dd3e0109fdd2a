from dataclasses import replace

import torch
from omegaconf import OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bbu_train.model import cost
from bbu_train.model.shape import configuration


def shape_of(config, model):
    return configuration(None, "random", OmegaConf.to_container(config(f"model={model}").model.shape))


def test_a_token_of_the_3b_model_takes_six_operations_for_each_weight_of_its_layers(config):
    assert cost.from_config(shape_of(config, "qwen25vl3b")).per_token == 6 * 36 * (
        2 * 2048 * (2048 + 256) + 3 * 2048 * 11008
    )


def test_cost_is_linear_and_quadratic_in_the_conversation_and_in_each_picture():
    cost_of = cost.Cost(per_token=1000, per_token_squared=100, per_patch=10, per_patch_squared=1)
    assert cost_of(0, []) == 0
    assert cost_of(3, []) == 3 * 1000 + 9 * 100
    assert cost_of(3, [4, 8]) == cost_of(3, []) + 12 * 10 + (16 + 64)


def test_attention_costs_more_in_a_wider_model(config):
    tiny, small, large = (cost.from_config(shape_of(config, name)) for name in ("tiny", "qwen25vl3b", "qwen25vl7b"))
    assert tiny.per_token_squared < small.per_token_squared < large.per_token_squared
    assert tiny.per_patch < small.per_patch < large.per_patch


def test_the_cost_of_a_sample_is_what_torch_counts_in_the_tiny_model(make_model, encoded, collate):
    model = make_model("head=none", "model.shape.text_config.num_hidden_layers=4")
    cost_of = cost.from_config(model.backbone.config)
    cost_of = replace(cost_of, per_token_squared=2 * cost_of.per_token_squared)  # torch also counts masked products
    for sample in encoded:
        batch = collate("packed", [sample])
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model.hidden_states(batch, model.encode_images(batch))
        predicted = cost_of(len(sample.input_ids), sample.grid_thw.prod(1).tolist())
        assert 0.97 < predicted / (3 * counter.get_total_flops()) < 1.03
