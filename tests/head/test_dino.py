"""What only `Dino` has: proposals, refinement from layer to layer, denoising and dense predictions."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from bbu_train.errors import InputError
from bbu_train.head.anchored_layer import AnchoredLayer
from bbu_train.head.anchors import anchor_logits, split_tokens
from bbu_train.head.denoising import add_box_noise
from bbu_train.head.modulated_attention import memory_positions, modulation_bias
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.runtime.seeds import generator
from bbu_train.types.batch import MemoryIndex

D_MODEL, NUM_HEADS = 16, 2


@pytest.fixture(scope="module")
def dino(make_model):
    """A function from overrides to the tiny model with this head. `refines`: its box heads do not start at zero."""

    def make(*overrides, refines=False):
        model = make_model("head=dino", "head.num_decoder_layers=3", "head.num_denoising_groups=4", *overrides)
        if refines:
            for name, parameter in model.head.named_parameters():
                if "box" in name and not parameter.any():
                    nn.init.normal_(parameter, std=0.05)
        return model

    return make


@pytest.fixture(scope="module")
def batch(collate, encoded):
    return collate("packed", encoded)


@pytest.fixture(scope="module")
def detections(dino, batch):
    """The detections of the untrained model in training mode."""
    with torch.no_grad():
        return dino()(batch).detections


def test_before_training_boxes_are_the_anchors_of_image_tokens_in_every_layer(detections, batch):
    boxes = detections.boxes_cxcywh
    index = split_tokens(batch.memory, 2)
    anchors = anchor_logits(index).sigmoid()
    for sample in range(len(batch.sample_ids)):
        distances = torch.cdist(boxes[0, sample], anchors[sample][index.vision_mask[sample]], p=torch.inf)
        assert distances.min(dim=1).values.max() < 1e-6
    for layer in boxes[1:]:
        torch.testing.assert_close(layer, boxes[0])


@torch.no_grad()
def test_proposals_are_the_tokens_with_the_highest_objectness(dino, batch):
    model = dino()
    scores = []
    model.head.proposal_objectness.register_forward_hook(lambda module, inputs, output: scores.append(output[..., 0]))
    proposals = model(batch).detections.objectness_logits[0]
    mask = split_tokens(batch.memory, 2).vision_mask
    for sample in range(len(batch.sample_ids)):
        expected = scores[0][sample][mask[sample]].topk(12).values
        torch.testing.assert_close(proposals[sample], expected)


def test_the_loss_of_a_layer_reaches_the_refinement_before_it_and_none_earlier(dino, batch):
    """DINO calls this "look forward twice". Proposals and layers are refined by different networks."""
    model = dino("head.num_decoder_layers=3", refines=True)
    refinements = []

    def record(module, inputs, output):
        output.retain_grad()
        refinements.append(output)

    model.head.box.register_forward_hook(record)
    model.eval()(batch).detections.boxes_logits[3].sum().backward()
    assert [bool((refinement.grad == 1).all()) for refinement in refinements[1:]] == [True, True]
    assert not refinements[0].grad.any()
    assert not model.head.proposal_box[0].weight.grad.any()


@torch.no_grad()
def test_each_layer_refines_the_boxes_of_the_layer_before(dino, batch):
    model, refinements = dino(refines=True), []
    model.head.box.register_forward_hook(lambda module, inputs, output: refinements.append(output[:, 0]))
    logits = model.eval()(batch).detections.boxes_logits
    torch.testing.assert_close(logits.diff(dim=0), torch.stack(refinements))


def test_a_layer_is_torchs_decoder_layer_with_the_modulation_as_mask():
    torch.manual_seed(0)
    layer = AnchoredLayer(D_MODEL, NUM_HEADS)
    peer = nn.TransformerDecoderLayer(
        D_MODEL, NUM_HEADS, 4 * D_MODEL, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    for source, target in ((layer.self_attention, peer.self_attn), (layer.cross_attention, peer.multihead_attn)):
        projections = (source.query, source.key, source.value)
        target.in_proj_weight.data = torch.cat([linear.weight.data for linear in projections])
        target.in_proj_bias.data = torch.cat([linear.bias.data for linear in projections])
        target.out_proj.load_state_dict(source.out.state_dict())
    peer.linear1.load_state_dict(layer.feed_forward[0].state_dict())
    peer.linear2.load_state_dict(layer.feed_forward[2].state_dict())

    random = generator("layer")
    queries, states = (
        torch.from_numpy(random.standard_normal(shape, dtype="float32"))
        for shape in ((2, 3, 4, D_MODEL), (2, 5, D_MODEL))
    )
    boxes = torch.from_numpy(0.2 + 0.3 * random.random((2, 3, 4, 4), dtype="float32"))
    vision_mask = torch.tensor([[True, True, True], [True, True, False]])
    text = torch.zeros(2, 2, dtype=torch.long)
    index = MemoryIndex(
        vision=torch.zeros(2, 3, dtype=torch.long),
        vision_mask=vision_mask,
        vision_centers=torch.tensor([[[1 / 6, 0.5], [0.5, 0.5], [5 / 6, 0.5]], [[0.25, 0.5], [0.75, 0.5], [0, 0]]]),
        text=text,
        text_mask=text == 0,
        text_positions=text,
    )
    keys_values = layer.cross_attention.keys_values(states, states)
    memory_pos = memory_positions(index)
    out = layer(queries, torch.zeros_like(queries), boxes, None, keys_values, memory_pos)
    for group in range(3):  # groups are as independent as samples of a batch
        gaussians = layer.modulation(
            cross_attention_input(peer, queries[:, group]), boxes[:, group], index.vision_sizes
        )
        mask = modulation_bias(gaussians, memory_pos.entries).flatten(0, 1)
        expected = peer(queries[:, group], states, memory_mask=mask)
        torch.testing.assert_close(out[:, group], expected)


def cross_attention_input(peer, queries):
    """The queries of cross-attention in torch's layer."""
    normalised = peer.norm1(queries)
    return peer.norm2(queries + peer.self_attn(normalised, normalised, normalised)[0])


def predictions_of(detections):
    return detections.boxes_logits, detections.objectness_logits


@torch.no_grad()
def test_denoising_does_not_change_the_predictions(dino, batch):
    """They are bit-identical with and without it, in training and in evaluation."""
    expected = predictions_of(dino("head.num_denoising_groups=0", refines=True)(batch).detections)
    for model in (dino(refines=True), dino("head.num_denoising_groups=1", refines=True), dino(refines=True).eval()):
        assert all(map(torch.equal, predictions_of(model(batch).detections), expected))


def test_denoising_and_dense_predictions_exist_in_training_only(dino, batch, detections):
    assert detections.denoising.boxes_cxcywh.shape == (3, 6, 4, 4)
    num_parts = 4 * batch.memory.vision.shape[1]
    assert detections.dense.boxes_cxcywh.shape == (4, num_parts, 4)
    assert set(detections.dense.objects.unique().tolist()) == {-1, 0, 1, 2, 3, 4, 5}
    with torch.no_grad():
        evaluated = dino().eval()(batch).detections
    assert evaluated.denoising is None
    assert evaluated.dense is None


def test_with_0_denoising_groups_there_is_no_denoising(dino, batch):
    with torch.no_grad():
        assert dino("head.num_denoising_groups=0")(batch).detections.denoising is None


@torch.no_grad()
def test_denoising_groups_do_not_attend_to_each_other(dino, batch):
    few, many = (dino(f"head.num_denoising_groups={n}", refines=True)(batch).detections.denoising for n in (1, 3))
    torch.testing.assert_close(many.boxes_cxcywh[:, :, :1], few.boxes_cxcywh)
    torch.testing.assert_close(many.objectness_logits[:, :, :1], few.objectness_logits)


def test_before_training_noised_boxes_stay_where_they_are(detections, batch):
    boxes = detections.denoising.boxes_cxcywh
    small_noise = add_box_noise(batch.boxes_cxcywh, batch.noise, 4)[:, :, 0]
    torch.testing.assert_close(boxes, small_noise.clamp(1e-4, 1 - 1e-4).expand_as(boxes))


@pytest.fixture(scope="module")
def refined_losses(dino, batch, make_criterion):
    with torch.no_grad():
        return make_criterion()(dino(refines=True)(batch), batch)


@pytest.mark.parametrize("kind", ["denoising", "dense"])
def test_denoising_and_dense_losses_are_proportional_to_their_weight(refined_losses, batch, make_criterion, kind):
    overrides = [f"loss.{kind}_weight=0"], [], [f"loss.{kind}_weight=2"]
    criteria = [make_criterion(*names) for names in overrides]  # the default weight is 1
    for term in ("bbox_l1", "bbox_giou", "objectness"):
        only = {name: loss if name == f"{kind}_{term}" else 0 * loss for name, loss in refined_losses.items()}
        totals = [criterion.objective(only, batch.counts) for criterion in criteria]
        assert totals[0] == 0 < totals[1]
        torch.testing.assert_close(totals[2], 2 * totals[1])


def test_without_any_object_every_parameter_has_a_finite_gradient(dino, collate, encoded, make_criterion):
    model = dino()
    empty = collate(
        "packed", [replace(s, boxes_cxcywh=s.boxes_cxcywh[:0], noise=s.noise[:0], captions=()) for s in encoded]
    )
    criterion = make_criterion("loss=varifocal")
    losses = criterion(model(empty), empty)
    criterion.objective(losses, empty.counts).backward()
    assert losses["objectness"] > 0
    assert {loss.item() for name, loss in losses.items() if name.startswith("denoising")} == {0.0}
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@torch.no_grad()
def test_there_may_be_more_queries_than_image_tokens(dino, batch):
    detections = dino("head.num_queries=200")(batch).detections
    assert detections.boxes_cxcywh.shape == (4, 4, 200, 4)
    assert detections.boxes_cxcywh.isfinite().all()
    logits = detections.objectness_logits[-1, 2]  # of the smallest picture, whose 4 tokens have 16 parts
    assert len(logits.unique()) > 100, "queries of the same token differ by their learned embedding"


@torch.no_grad()
def test_more_objects_than_queries_name_the_sample(dino, batch, make_criterion):
    with pytest.raises(InputError, match=r"a has 3 objects and the head has 2 queries.*head\.num_queries"):
        make_criterion()(dino("head.num_queries=2")(batch), batch)


@pytest.mark.parametrize("choice", ["adamw", "adamw_uniform"])
def test_every_parameter_has_a_group(choice, dino, config):
    model = dino()
    optimizer = instantiate(config("head=dino", f"optimizer={choice}").optimizer, _convert_="all")(model)
    grouped = [parameter for group in parameters_by_group(optimizer).values() for parameter in group]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}
