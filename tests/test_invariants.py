"""What must hold on every layout: a step is a set of samples, however they lie, and no sample knows another."""

from dataclasses import replace

import pytest
import torch

from bbu_train.types.batch import Counts

HEADS = ["head=detr", "head=dino"]


@pytest.fixture(scope="module", params=[*HEADS, "head=none", "head=none model.image_position_scale=1"])
def model(make_model, request):
    model = make_model(*request.param.split())
    if model.head is not None:
        torch.manual_seed(1)
        for parameter in model.head.parameters():  # what begins at zero hides what lies behind it
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradients(model, criterion, batches):
    """Means of the losses of a step, and the gradient of its objective, however the step is split into batches."""
    model.zero_grad()
    counts = sum((batch.counts for batch in batches), Counts(0, 0, 0, 0))
    sums = {}
    for batch in batches:
        losses = criterion(model(batch), batch)
        criterion.objective(losses, counts).backward()
        sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
    return criterion.means(sums, counts), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def expected(model, make_criterion, collate, encoded):
    """Means and gradients of a step whose samples are packed into one batch."""
    return gradients(model, make_criterion(), [collate("packed", encoded)])


def split(encoded, num_parts):
    return [encoded[i::num_parts] for i in range(num_parts)]


def assert_same(first, second):
    for (name, a), b in zip(first.items(), second.values(), strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4])
@pytest.mark.parametrize("collator", ["packed", "standard"])
def test_every_layout_gives_the_same_losses_and_gradients(
    model, make_criterion, collate, encoded, expected, collator, num_micro_batches
):
    batches = [collate(collator, part) for part in split(encoded, num_micro_batches)]
    for ours, reference in zip(gradients(model, make_criterion(), batches), expected, strict=True):
        assert_same(ours, reference)


def test_a_part_without_samples_changes_nothing(model, make_criterion, collate, encoded, expected):
    batches = [collate("packed", encoded), collate("packed", [encoded[0].unsupervised()])]
    for ours, reference in zip(gradients(model, make_criterion(), batches), expected, strict=True):
        assert_same(ours, reference)


def outputs_of(model, batch, sample):
    """Everything the model says of one sample of a batch: token losses, boxes, objectness and captions."""
    with torch.no_grad():
        outputs = model(batch)
    tokens = batch.sample_of_token.flatten()[batch.supervised_positions] == sample
    said = [outputs.token_losses[tokens]]
    if outputs.detections is not None:
        detections = outputs.detections
        mine = batch.sample_of_object == sample
        queries = torch.cat([torch.arange(num_objects) for num_objects in batch.objects_per_sample])
        captions = detections.caption_losses(
            batch.sample_of_object, queries, batch.caption_ids, max(batch.objects_per_sample)
        )
        said += [detections.boxes_logits[:, sample], detections.objectness_logits[:, sample], captions[mine]]
        if detections.denoising is not None:
            said += [detections.denoising.boxes_cxcywh[:, mine], detections.denoising.objectness_logits[:, mine]]
        if detections.dense is not None:
            real = detections.dense.mask[sample]
            said += [detections.dense.boxes_cxcywh[sample, real].T, detections.dense.objectness_logits[sample, real]]
    return said


def with_another_text(encoded):
    """The same sample with other words of the same length; control tokens and pictures stay."""
    text = encoded.input_ids < 600
    return replace(encoded, input_ids=torch.where(text, (encoded.input_ids + 7) % 600, encoded.input_ids))


def with_other_pixels(encoded):
    return replace(encoded, patches=255 - encoded.patches)


@pytest.mark.parametrize("change", [with_another_text, with_other_pixels])
def test_under_packing_a_sample_does_not_notice_changes_of_another(model, collate, encoded, change):
    before = collate("packed", encoded)
    after = collate("packed", [change(encoded[0]), *encoded[1:]])
    assert not all(map(torch.equal, outputs_of(model, before, 0), outputs_of(model, after, 0)))
    for sample in (1, 2, 3):
        assert all(map(torch.equal, outputs_of(model, before, sample), outputs_of(model, after, sample)))


@pytest.mark.parametrize("collator", ["packed", "standard"])
def test_a_sample_does_not_notice_which_others_lie_beside_it(model, collate, encoded, collator):
    alone = outputs_of(model, collate(collator, [encoded[1]]), 0)
    among = outputs_of(model, collate(collator, [encoded[0], encoded[3], encoded[1]]), 2)
    # Captions are padded to the longest of the batch.
    for a, b in zip(alone, among, strict=True):
        torch.testing.assert_close(a, b[..., : a.shape[-1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("collator", ["packed", "standard"])
def test_the_head_cannot_see_the_answer(make_model, collate, encoded, collator, head):
    model = make_model(head)
    hidden_answer = [
        replace(
            sample,
            input_ids=torch.where(torch.arange(len(sample.input_ids)) >= sample.memory_end, 5, sample.input_ids),
        )
        for sample in encoded
    ]
    with torch.no_grad():
        seen, hidden = (model(collate(collator, some)).detections for some in (encoded, hidden_answer))
    assert torch.equal(seen.boxes_logits, hidden.boxes_logits)
    assert torch.equal(seen.objectness_logits, hidden.objectness_logits)


def test_what_is_matched_and_described_does_not_depend_on_the_true_boxes(make_model, collate, encoded):
    """They are given to a head that denoises, and no query reads another's group."""
    model = make_model("head=dino")
    batch = collate("packed", encoded)
    others = collate("packed", [replace(its, boxes_cxcywh=its.boxes_cxcywh / 2) for its in encoded])
    none = collate(
        "packed", [replace(its, boxes_cxcywh=its.boxes_cxcywh[:0], captions=(), noise=its.noise[:0]) for its in encoded]
    )
    objects = batch.sample_of_object, batch.sample_of_object + 1, batch.caption_ids, max(batch.objects_per_sample)
    with torch.no_grad():
        expected, *changed = (model(its).detections for its in (batch, others, none))
        asked = model.eval()(batch).detections
    assert not torch.equal(expected.denoising.boxes_cxcywh, changed[0].denoising.boxes_cxcywh)
    assert asked.denoising is None
    for said in (*changed, asked):
        assert torch.equal(said.boxes_logits, expected.boxes_logits)
        assert torch.equal(said.objectness_logits, expected.objectness_logits)
        assert torch.equal(said.caption_losses(*objects), expected.caption_losses(*objects))


@pytest.mark.parametrize("head", HEADS)
def test_the_head_sees_the_answers_of_teachers(make_model, collate, encoded, head):
    model = make_model(head)
    sample = encoded[0]
    others = replace(sample, input_ids=torch.where(sample.roles == 1, 5, sample.input_ids))
    with torch.no_grad():
        seen, changed = (model(collate("packed", [some])).detections for some in (sample, others))
    assert not torch.equal(seen.objectness_logits, changed.objectness_logits)
