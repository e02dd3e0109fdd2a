"""What is Dino's own: proposals, boxes that move from layer to layer, and noised boxes beside them."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from bbu_train.errors import InputError
from bbu_train.head import anchors, modulated_attention
from bbu_train.head.denoising import noised
from bbu_train.head.dino import AnchoredLayer
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.runtime.seeds import generator
from bbu_train.types.batch import MemoryIndex

D_MODEL, NUM_HEADS = 16, 2


@pytest.fixture
def dino(make_model):
    """A function from overrides to the tiny model with this head; `taught`: its boxes move."""

    def make(*overrides, taught=False):
        model = make_model("head=dino", *overrides)
        if taught:
            for name, parameter in model.head.named_parameters():
                if "box" in name and not parameter.any():
                    nn.init.normal_(parameter, std=0.05)
        return model

    return make


@pytest.fixture
def batch(collate, encoded):
    return collate("packed", encoded)


def test_untaught_boxes_lie_around_image_tokens_and_no_layer_moves_them(dino, batch):
    boxes = dino()(batch).detections.boxes_cxcywh
    index = anchors.finer(batch.memory, 2)
    begin = anchors.of_tokens(index).sigmoid()
    for sample in range(len(batch.sample_ids)):
        apart = torch.cdist(boxes[0, sample], begin[sample][index.vision_mask[sample]], p=torch.inf)
        assert apart.min(dim=1).values.max() < 1e-6
    for layer in boxes[1:]:
        torch.testing.assert_close(layer, boxes[0])


def test_proposals_are_the_tokens_that_look_most_like_an_object(dino, batch):
    model = dino()
    scores = []
    model.head.proposed_objectness.register_forward_hook(lambda module, inputs, output: scores.append(output[..., 0]))
    proposed = model(batch).detections.objectness_logits[0]
    mask = anchors.finer(batch.memory, 2).vision_mask
    for sample in range(len(batch.sample_ids)):
        best = scores[0][sample][mask[sample]].topk(12).values
        torch.testing.assert_close(proposed[sample], best)


def test_the_loss_of_a_layer_reaches_the_move_before_it_and_none_earlier(dino, batch):
    """As in DINO ("look forward twice"). The moves of proposals and of layers come from different networks."""
    model = dino("head.num_decoder_layers=3", taught=True)
    moves = []
    model.head.box.register_forward_hook(lambda module, inputs, output: (output.retain_grad(), moves.append(output))[0])
    model.eval()(batch).detections.boxes_logits[3].sum().backward()
    assert [bool((move.grad == 1).all()) for move in moves[1:]] == [True, True]
    assert not moves[0].grad.any()
    assert not model.head.proposed_box[0].weight.grad.any()


def test_each_layer_moves_the_boxes_of_the_layer_before(dino, batch):
    model, moves = dino(taught=True), []
    model.head.box.register_forward_hook(lambda module, inputs, output: moves.append(output[:, 0]))
    logits = model.eval()(batch).detections.boxes_logits
    torch.testing.assert_close(logits.diff(dim=0), torch.stack(moves))


def test_a_layer_is_torchs_decoder_layer_with_its_gaze_as_mask():
    torch.manual_seed(0)
    layer = AnchoredLayer(D_MODEL, NUM_HEADS)
    theirs = nn.TransformerDecoderLayer(
        D_MODEL, NUM_HEADS, 4 * D_MODEL, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    for ours, its in ((layer.self_attention, theirs.self_attn), (layer.cross_attention, theirs.multihead_attn)):
        its.in_proj_weight.data = torch.cat([part.weight.data for part in (ours.query, ours.key, ours.value)])
        its.in_proj_bias.data = torch.cat([part.bias.data for part in (ours.query, ours.key, ours.value)])
        its.out_proj.load_state_dict(ours.out.state_dict())
    theirs.linear1.load_state_dict(layer.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(layer.feed_forward[2].state_dict())

    random = generator("layer")
    queries, states = (
        torch.from_numpy(random.standard_normal(shape, dtype="float32"))
        for shape in ((2, 3, 4, D_MODEL), (2, 5, D_MODEL))
    )
    boxes = torch.from_numpy(0.2 + 0.3 * random.random((2, 3, 4, 4), dtype="float32"))
    real = torch.tensor([[True, True, True], [True, True, False]])
    text = torch.zeros(2, 2, dtype=torch.long)
    index = MemoryIndex(
        vision=torch.zeros(2, 3, dtype=torch.long),
        vision_mask=real,
        vision_centers=torch.tensor([[[1 / 6, 0.5], [0.5, 0.5], [5 / 6, 0.5]], [[0.25, 0.5], [0.75, 0.5], [0, 0]]]),
        text=text,
        text_mask=text == 0,
        text_positions=text,
    )
    keys_values = layer.cross_attention.keys_values(states, states)
    out = layer(queries, torch.zeros_like(queries), boxes, None, keys_values, modulated_attention.places(index))
    for group in range(3):  # groups are to each other as the samples of a batch
        looks = layer.gaze(layer_asked(theirs, queries[:, group]), boxes[:, group], index.vision_sizes)
        mask = modulated_attention.bias(looks, modulated_attention.places(index).entries).flatten(0, 1)
        expected = theirs(queries[:, group], states, memory_mask=mask)
        torch.testing.assert_close(out[:, group], expected)


def layer_asked(theirs, queries):
    """What torch's layer asks the memory with."""
    normalised = theirs.norm1(queries)
    return theirs.norm2(queries + theirs.self_attn(normalised, normalised, normalised)[0])


def said_of(detections):
    return detections.boxes_logits, detections.objectness_logits


def test_noised_boxes_are_no_part_of_the_answer(dino, batch):
    """With and without them, in training and in evaluation, the answer is the same bit for bit."""
    expected = said_of(dino("head.num_denoising_groups=0", taught=True)(batch).detections)
    for model in (dino(taught=True), dino("head.num_denoising_groups=1", taught=True), dino(taught=True).eval()):
        assert all(map(torch.equal, said_of(model(batch).detections), expected))


def test_noised_boxes_exist_in_training_only(dino, batch):
    assert dino()(batch).detections.denoising.boxes_cxcywh.shape == (3, 6, 4, 4)
    assert dino().eval()(batch).detections.denoising is None
    assert dino("head.num_denoising_groups=0")(batch).detections.denoising is None


def test_groups_of_noised_boxes_do_not_read_each_other(dino, batch):
    few, many = (dino(f"head.num_denoising_groups={n}", taught=True)(batch).detections.denoising for n in (1, 3))
    torch.testing.assert_close(many.boxes_cxcywh[:, :, :1], few.boxes_cxcywh)
    torch.testing.assert_close(many.objectness_logits[:, :, :1], few.objectness_logits)


def test_untaught_a_noised_box_stays_where_it_was_put(dino, batch):
    said = dino()(batch).detections.denoising.boxes_cxcywh
    little = noised(batch.boxes_cxcywh, batch.noise, 4)[:, :, 0]
    torch.testing.assert_close(said, little.clamp(1e-4, 1 - 1e-4).expand_as(said))


def test_tokens_find_objects_by_themselves_in_training_only(dino, batch):
    dense = dino()(batch).detections.dense
    num_parts = 4 * batch.memory.vision.shape[1]
    assert dense.boxes_cxcywh.shape == (4, num_parts, 4)
    assert set(dense.objects.unique().tolist()) == {-1, 0, 1, 2, 3, 4, 5}
    assert dino().eval()(batch).detections.dense is None


@pytest.mark.parametrize("kind", ["denoising", "dense"])
def test_the_losses_of_training_alone_count_by_their_weight(dino, batch, make_criterion, kind):
    model = dino(taught=True)
    with torch.no_grad():
        outputs = model(batch)
    key = {"denoising": "denoising_weight", "dense": "dense_weight"}[kind]
    never, once, twice = (make_criterion(f"loss.{key}={weight}") for weight in (0, 1, 2))
    losses = once(outputs, batch)
    for term in ("bbox_l1", "bbox_giou", "objectness"):
        only = {name: loss if name == f"{kind}_{term}" else 0 * loss for name, loss in losses.items()}
        totals = [criterion.objective(only, batch.counts) for criterion in (never, once, twice)]
        assert totals[0] == 0 < totals[1]
        torch.testing.assert_close(totals[2], 2 * totals[1])


def test_without_any_object_every_parameter_has_a_finite_gradient(dino, collate, encoded, make_criterion):
    model = dino()
    empty = collate(
        "packed", [replace(its, boxes_cxcywh=its.boxes_cxcywh[:0], noise=its.noise[:0], captions=()) for its in encoded]
    )
    criterion = make_criterion("loss=varifocal")
    losses = criterion(model(empty), empty)
    criterion.objective(losses, empty.counts).backward()
    assert losses["objectness"] > 0
    assert {loss.item() for name, loss in losses.items() if name.startswith("denoising")} == {0.0}
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_there_may_be_more_queries_than_image_tokens(dino, batch, make_criterion):
    detections = dino("head.num_queries=200")(batch).detections
    assert detections.boxes_cxcywh.shape == (4, 4, 200, 4)
    assert detections.boxes_cxcywh.isfinite().all()
    states = detections.objectness_logits[-1, 2]  # of the smallest picture, whose 4 tokens have 16 parts
    assert len(states.unique()) > 100, "a token that came again has another learned state beside it"


def test_more_objects_than_queries_name_the_sample(dino, batch, make_criterion):
    with pytest.raises(InputError, match=r"a has 3 objects and the head has 2 queries.*head\.num_queries"):
        make_criterion()(dino("head.num_queries=2")(batch), batch)


@pytest.mark.parametrize("choice", ["adamw", "adamw_uniform"])
def test_every_parameter_has_a_group(choice, dino, config):
    model = dino()
    optimizer = instantiate(config("head=dino", f"optimizer={choice}").optimizer, _convert_="all")(model)
    grouped = [parameter for its in parameters_by_group(optimizer).values() for parameter in its]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}
