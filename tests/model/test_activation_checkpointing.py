"""Activation checkpointing and a frozen vision tower."""

import pytest


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
