import pytest
import torch
from torch import nn

from bbu_train.checkpoint.load import load_weights
from bbu_train.errors import InputError


def model(num_queries):
    return nn.ModuleDict({"backbone": nn.Linear(2, 3), "head": nn.Embedding(num_queries, 2)})


def weights_of(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_every_parameter_is_filled():
    saved, loaded = model(4), model(4)
    load_weights(loaded, weights_of(saved))
    assert all(torch.equal(one, other) for one, other in zip(saved.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("in_model", "in_checkpoint", "problem"),
    [
        (
            model(4),
            weights_of(model(5)),
            r"head.weight has the shape \(5, 2\) in the checkpoint and \(4, 2\) in",
        ),
        (model(4), weights_of(nn.ModuleDict({"backbone": nn.Linear(2, 3)})), "head is not in the checkpoint: none of"),
        (nn.ModuleDict({"backbone": nn.Linear(2, 3)}), weights_of(model(4)), "head is not in the model: none of its 1"),
        (model(4), {"backbone.weight": torch.zeros(3, 2), "head.weight": torch.zeros(4, 2)}, "backbone.bias is not in"),
    ],
)
def test_weights_of_another_model_are_one_error(in_model, in_checkpoint, problem):
    with pytest.raises(InputError, match=f"of another model: 1 problem.\n  {problem}"):
        load_weights(in_model, in_checkpoint)
