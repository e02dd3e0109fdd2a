"""What is computed again in the backward pass, and what has none."""

import pytest


@pytest.mark.parametrize("choice", ["selective", "full"])
def test_a_frozen_tower_is_not_run_backwards(make_model, collate, encoded, choice):
    model = make_model()
    model.enable_gradient_checkpointing(choice)
    visual, needs_gradient = model.backbone.model.visual, []
    visual.blocks[-1].register_forward_hook(lambda _, args, states: needs_gradient.append(states.requires_grad))
    for is_trained in (True, False):
        for parameter in (*visual.patch_embed.parameters(), *visual.blocks.parameters()):
            parameter.requires_grad_(is_trained)
        model(collate("packed", encoded))
    assert needs_gradient == [True, False]
