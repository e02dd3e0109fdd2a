"""Both detection heads on random features: whose memory they read, and what they predict before training."""

from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from torch import nn

from bbu_train.head.detr import Detr
from bbu_train.head.dino import Dino
from bbu_train.runtime.seeds import generator
from bbu_train.types.batch import GroundTruth, MemoryIndex

WIDTH, VOCABULARY, END, NUM_QUERIES = 16, 20, 19, 5
VISION = [[2, 3, 4], [7], [9, 10]]  # image tokens of each sample's student picture; those between belong to teachers
TEXT = [range(4), range(6, 12), range(12, 14)]
CAPTIONS = torch.tensor([[1, 2, 3], [4, 5, -100], [6, 7, 8], [9, -100, -100]])
SAMPLES, QUERIES = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 1, 0, 4])
TRUTH = GroundTruth(
    torch.tensor([[0.4, 0.5, 0.2, 0.3], [0.7, 0.2, 0.1, 0.2], [0.5, 0.5, 0.4, 0.4], [0.1, 0.8, 0.2, 0.1]]),
    torch.full((4, 4), 0.3),
    SAMPLES,
    2,
)


def random(name, *shape):
    return torch.from_numpy(generator("detr", name).standard_normal(shape, dtype="float32"))


def pad(rows, fill):
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
    return ids, torch.tensor([[i < len(row) for i in range(longest)] for row in rows])


def memory_index(fill=0) -> MemoryIndex:
    """Three samples; padding points at `fill`."""
    (vision, vision_mask), (text, text_mask) = pad(VISION, fill), pad(TEXT, fill)
    centers = torch.from_numpy(generator("centers").random((*vision.shape, 2), dtype="float32"))
    positions, _ = pad([range(len(row)) for row in TEXT], fill)
    return MemoryIndex(vision, vision_mask, centers, text, text_mask, positions)


@pytest.fixture(params=[Detr, partial(Dino, split=3, num_denoising_groups=3)], ids=["detr", "dino"])
def head(request):
    torch.manual_seed(0)
    head = request.param(
        WIDTH,
        num_queries=NUM_QUERIES,
        d_model=16,
        num_heads=2,
        num_decoder_layers=2,
        num_caption_layers=2,
        adapter_ratio=4,
        vocabulary_chunk=1000,
        max_caption_tokens=4,
    )
    for name, parameter in head.named_parameters():
        if "box" in name and not parameter.any():  # box heads that start at zero would hide what influences boxes
            nn.init.normal_(parameter, std=0.1)
        if "modulation.projection.bias" in name:  # the initial text bias would hide the influence of text
            parameter.data[4::5] = 0
    return head


@pytest.fixture
def detect(head):
    """A function from features and an index to detections."""
    torch.manual_seed(1)
    embed, project = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
    return lambda vision, hidden, index: head(vision, hidden, index, TRUTH, embed, project)


@pytest.fixture
def features():
    """Features of 12 image tokens, and hidden states of 14 tokens of text."""
    return random("vision", 12, WIDTH), random("hidden", 14, WIDTH)


def predictions_of(detections, sample) -> list[torch.Tensor]:
    """All predictions for one sample: boxes, objectness, caption losses and captions."""
    caption_losses = detections.caption_losses(SAMPLES, QUERIES, CAPTIONS, 2)[sample == SAMPLES]
    captions = detections.generate_captions(END)[sample]
    return [detections.boxes_logits[:, sample], detections.objectness_logits[:, sample], caption_losses, captions]


def are_bit_identical(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_permuting_the_samples_permutes_the_predictions(detect, features):
    index, order = memory_index(), torch.tensor([2, 0, 1])
    permuted = MemoryIndex(**{field.name: getattr(index, field.name)[order] for field in fields(index)})
    expected, detections = detect(*features, index), detect(*features, permuted)
    torch.testing.assert_close(detections.boxes_logits, expected.boxes_logits[:, order])
    torch.testing.assert_close(detections.objectness_logits, expected.objectness_logits[:, order])
    assert torch.equal(detections.generate_captions(END), expected.generate_captions(END)[order])


@pytest.mark.parametrize("sample", [0, 1, 2])
def test_no_sample_reads_the_memory_of_another(sample, detect, features):
    vision, hidden = (part.clone() for part in features)
    others_vision = [i for i in range(len(vision)) if i not in VISION[sample]]
    others_hidden = [i for i in range(len(hidden)) if i not in TEXT[sample]]
    vision[others_vision] += 3
    hidden[others_hidden] *= -2
    expected = predictions_of(detect(*features, memory_index()), sample)
    assert are_bit_identical(predictions_of(detect(vision, hidden, memory_index()), sample), expected)


def test_padding_of_the_memory_has_no_influence(detect, features):
    index = memory_index(fill=11)
    centers = torch.where(index.vision_mask[..., None], index.vision_centers, 9.0)
    expected = detect(*features, memory_index())
    detections = detect(*features, replace(index, vision_centers=centers))
    for sample in range(3):
        assert are_bit_identical(predictions_of(detections, sample), predictions_of(expected, sample))


def test_a_longer_padding_has_no_influence(detect, features):
    index = memory_index()
    longer = {
        name: torch.cat([getattr(index, name), torch.zeros_like(getattr(index, name))], dim=1)
        for name in ("vision", "vision_mask", "vision_centers")
    }
    expected, detections = detect(*features, index), detect(*features, replace(index, **longer))
    torch.testing.assert_close(detections.boxes_logits, expected.boxes_logits)
    torch.testing.assert_close(detections.objectness_logits, expected.objectness_logits)


@pytest.mark.parametrize("name", ["vision_centers", "text_positions"])
def test_the_position_of_a_memory_entry_matters(name, detect, features):
    index = memory_index()
    moved = replace(index, **{name: getattr(index, name).roll(1, dims=1) + 1})
    before, after = (detect(*features, i).boxes_logits[-2:] for i in (index, moved))  # proposals do not read text
    assert not torch.isclose(after, before).all(dim=-1).any()


@pytest.mark.parametrize("term", ["boxes_logits", "objectness_logits"])
def test_a_gradient_reaches_the_features_of_the_memory_and_no_others(term, detect, features):
    vision, hidden = (part.clone().requires_grad_() for part in features)
    getattr(detect(vision, hidden, memory_index()), term).square().sum().backward()
    assert set(vision.grad.norm(dim=1).nonzero()[:, 0].tolist()) == {i for row in VISION for i in row}
    assert set(hidden.grad.norm(dim=1).nonzero()[:, 0].tolist()) == {i for row in TEXT for i in row}


def test_captions_train_matched_queries_only(head, detect, features):
    head.eval()  # without denoising, whose queries would be among the states
    states = []

    def record(module, inputs, output):
        output.retain_grad()
        states.append(output)

    head.norm.register_forward_hook(record)
    detect(*features, memory_index()).caption_losses(SAMPLES, QUERIES, CAPTIONS, 2).sum().backward()
    trained = states[-1].grad.view(3, NUM_QUERIES, -1).norm(dim=-1).nonzero().tolist()
    assert trained == sorted([sample, query] for sample, query in zip(SAMPLES.tolist(), QUERIES.tolist(), strict=True))


def test_the_caption_of_an_object_does_not_depend_on_how_many_there_are(detect, features):
    detections = detect(*features, memory_index())
    together = detections.caption_losses(SAMPLES, QUERIES, CAPTIONS, 2)
    alone = [
        detections.caption_losses(SAMPLES[i : i + 1], QUERIES[i : i + 1], CAPTIONS[i : i + 1], 1) for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_every_layer_gives_boxes_and_objectness(head, detect, features):
    detections = detect(*features, memory_index())
    num_layers = 2 if isinstance(head, Detr) else 3  # with the proposals
    assert detections.boxes_logits.shape == (num_layers, 3, NUM_QUERIES, 4)
    assert detections.objectness_logits.shape == (num_layers, 3, NUM_QUERIES)
    assert torch.equal(detections.boxes_cxcywh, detections.boxes_logits.sigmoid())


def test_objectness_starts_low(detect, features):
    objectness = detect(*features, memory_index()).objectness_logits.sigmoid()
    assert 0.001 < objectness.min() < objectness.max() < 0.1


def test_no_two_queries_predict_the_same_box(detect, features):
    boxes = detect(*features, memory_index()).boxes_cxcywh[-1]
    assert (torch.cdist(boxes, boxes) + torch.eye(NUM_QUERIES) > 1e-3).all()
