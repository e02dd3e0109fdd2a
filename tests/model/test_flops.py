"""The useful operations of a step, compared with what torch's own counter counts in the tiny model."""

from dataclasses import astuple, replace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bbu_train.head.layers import Attention
from bbu_train.ops import chunked_cross_entropy, flops
from bbu_train.ops.flops import Sizes

VISION = "model.visual.patch_embed", "model.visual.blocks"
MERGER = ("model.visual.merger",)
LANGUAGE = "model.language_model", "lm_head"
# One windowed block, one with full attention and two layers: half of the tiny model.
SHALLOW = (
    "model.shape.vision_config.depth=2",
    "model.shape.vision_config.fullatt_block_indexes=[1]",
    "model.shape.text_config.num_hidden_layers=2",
)
FROZEN = {  # parts of the backbone
    "nothing": (),
    "vision": VISION,
    "vision and merger": VISION + MERGER,
    "language": LANGUAGE,
    "merger and language": MERGER + LANGUAGE,
    "the lower half": (*VISION, *MERGER, "model.language_model.embed_tokens", "model.language_model.layers.0"),
}


@pytest.fixture(autouse=True)
def _no_recomputed_logits(monkeypatch):
    """Turn off checkpointing of logits: recomputation in the backward pass is not useful work."""
    monkeypatch.setattr(chunked_cross_entropy, "checkpoint", lambda function, *args, use_reentrant: function(*args))


@pytest.fixture
def _no_masks(monkeypatch):
    """Drop the mask, whose extra channels are not useful work. For a single sample it hides nothing."""
    original = Attention.keys_values

    def unmasked(self, keys, values, mask=None):
        assert mask is None or mask.all()
        return original(self, keys, values)

    monkeypatch.setattr(Attention, "keys_values", unmasked)


def freeze(module, *prefixes):
    for name, parameter in module.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)


def count(model, criterion, batch):
    """Return the operations of forward and backward as torch counts them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        criterion.objective(criterion(model(batch), batch), batch.counts).backward()
    return counter.get_total_flops()


def with_masked_pairs(sizes):
    """Double the causal pairs, because torch's plain attention also computes the masked half."""
    return replace(sizes, token_squares=2 * sizes.token_squares, caption_squares=2 * sizes.caption_squares)


@pytest.mark.parametrize("frozen", FROZEN)
def test_the_formula_for_the_backbone_equals_torchs_count(make_model, make_criterion, collate, encoded, frozen):
    model = make_model("head=none", *SHALLOW)
    if FROZEN[frozen]:
        freeze(model.backbone, *FROZEN[frozen])
    batch = collate("packed", encoded)
    expected = count(model, make_criterion("loss=language"), batch)
    assert model.training_flops(with_masked_pairs(batch.sizes)) == expected


@pytest.mark.usefixtures("_no_masks")
@pytest.mark.parametrize("frozen_head", [(), ("vision_adapter", "language_adapter")])
@pytest.mark.parametrize("frozen", ["nothing", "vision", "language"])
@pytest.mark.parametrize("head", ["head=detr", "head=dino"])
def test_the_formula_for_the_model_with_a_head_equals_torchs_count(
    make_model, make_criterion, collate, encoded, head, frozen, frozen_head
):
    """One sample with one object: neither its caption nor its two noised boxes, with two queries, need padding."""
    model = make_model(head, "head.num_queries=2", *SHALLOW)
    if FROZEN[frozen]:
        freeze(model.backbone, *FROZEN[frozen])
    if frozen_head:
        freeze(model.head, *frozen_head)
    batch = collate("packed", encoded[3:])
    expected = count(model, make_criterion(), batch)
    assert model.training_flops(with_masked_pairs(batch.sizes)) == expected - outside_the_memory(model, batch)


def outside_the_memory(model, batch):
    """Return the adapters' operations on features that the head does not read: teachers' pictures and the answer."""
    sizes, head = batch.sizes, model.head
    unread = sizes.patches // 4 - sizes.memory_image, sizes.tokens - (sizes.memory - sizes.memory_image)
    assert min(unread) > 0
    weights = [
        sum(matrix.weight.numel() for matrix in (adapter.down, adapter.up, adapter.project))
        for adapter in (head.vision_adapter, head.language_adapter)
    ]
    trains = head.vision_adapter.down.weight.requires_grad
    return flops.matmul_flops(trains, needs_input_grad=True) * sum(
        rows * size for rows, size in zip(unread, weights, strict=True)
    )


@pytest.mark.parametrize("head", ["head=detr", "head=dino", "head=none"])
@pytest.mark.parametrize(("collator", "num_parts"), [("standard", 1), ("packed", 2), ("standard", 4)])
def test_the_count_of_a_step_is_the_same_in_every_layout(make_model, collate, encoded, head, collator, num_parts):
    """Parts are micro-batches or ranks of a step. A part without samples gets an unsupervised stand-in."""
    model = make_model(head, *SHALLOW)
    parts = [encoded[i::num_parts] for i in range(num_parts)] + [[encoded[0].unsupervised()]]
    sizes = [astuple(collate(collator, part).sizes) for part in parts]
    together = Sizes(*map(sum, zip(*sizes, strict=True)))
    expected = model.training_flops(collate("packed", encoded).sizes)
    assert model.training_flops(together) == expected > 0
    assert sum(model.training_flops(Sizes(*part)) for part in sizes) == expected


def test_padding_of_matrices_is_not_counted(make_model, collate, encoded):
    sizes = collate("packed", encoded).sizes
    plain, widened = make_model("head=none"), make_model("head=none", "model.vision_mlp_multiple=64")
    assert widened.training_flops(sizes) == plain.training_flops(sizes)
