"""Activation checkpointing and a frozen vision tower."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from bbu_train.model.activation_checkpointing import selective_contexts
from bbu_train.ops.compile import compile_block


@pytest.mark.parametrize("choice", ["selective", "full"])
def test_no_gradient_flows_through_a_frozen_tower(make_model, collate, encoded, choice):
    model = make_model()
    model.set_activation_checkpointing(choice)
    visual, requires_grad = model.backbone.model.visual, []
    visual.blocks[-1].register_forward_hook(lambda _, args, states: requires_grad.append(states.requires_grad))
    for is_trained in (True, False):
        for parameter in (*visual.patch_embed.parameters(), *visual.blocks.parameters()):
            parameter.requires_grad_(is_trained)
        model(collate("packed", encoded))
    assert requires_grad == [True, False]


class Product(torch.autograd.Function):
    """A product with a gradient of its own, as an attention kernel has. Nothing of it needs a C++ compiler."""

    @staticmethod
    def forward(ctx, states, weight):
        ctx.save_for_backward(states, weight)
        return states @ weight

    @staticmethod
    def backward(ctx, gradient):
        states, weight = ctx.saved_tensors
        return gradient @ weight.T, states.T @ gradient


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.rand(8, 8) for _ in range(2))
        self.contexts = selective_contexts()

    def forward(self, states):
        return checkpoint(self.products, states, use_reentrant=False, context_fn=self.contexts)

    def products(self, states):
        return Product.apply(states @ self.weights[0], self.weights[1])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # raised inside torch
def test_a_second_start_takes_the_graphs_of_checkpointed_blocks_from_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for expected in ({"miss": 1, "saved": 1}, {"hit": 1}):
        torch.compiler.reset()
        counters.clear()
        block = Block()
        compile_block(block)
        block(torch.rand(5, 8)).sum().backward()
        counted = counters["aot_autograd"]
        assert {name: n for name in ("hit", "miss", "saved", "bypass") if (n := counted[f"autograd_cache_{name}"])} == (
            expected
        )
