import copy

import torch
from torch import nn

from bbu_train.model.padding import pad_vision_mlp


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Visual(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.Module()
        block.mlp = Mlp()
        self.blocks = nn.ModuleList([block])


def test_a_padded_vision_mlp_computes_and_learns_the_same_as_the_narrow_one():
    torch.manual_seed(0)
    narrow = Visual()
    wide = copy.deepcopy(narrow)
    pad_vision_mlp(wide, 8)
    x = torch.randn(3, 4)
    for _ in range(3):
        outputs = []
        for visual in (narrow, wide):
            outputs.append(visual.blocks[0].mlp(x))
            visual.zero_grad()
            outputs[-1].square().sum().backward()
            with torch.no_grad():
                for parameter in visual.parameters():
                    parameter.sub_(0.1 * parameter.grad)
        torch.testing.assert_close(*outputs)
    gate, down = wide.blocks[0].mlp.gate_proj, wide.blocks[0].mlp.down_proj
    assert (gate.out_features, down.in_features) == (8, 8)
    assert not gate.weight[5:].any() and not gate.bias[5:].any() and not down.weight[:, 5:].any()
