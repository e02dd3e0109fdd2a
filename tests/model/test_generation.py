"""Generation with a cache, compared with the forward pass of training on the same tokens."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate

from bbu_train.collator.prompts import left_pad
from bbu_train.model import generation, greedy_decoding
from bbu_train.types.samples import Role

NUM_NEW = 12


@pytest.fixture
def model(make_model):
    return enlarge_weights(make_model())


@pytest.fixture(params=[0, 1])
def model_at_each_scale(make_model, request):
    return enlarge_weights(make_model(f"model.image_position_scale={request.param}"))


def enlarge_weights(model):
    """Enlarge the weights: with fresh ones the model generates the same few tokens for any prompt."""
    with torch.no_grad():
        for parameter in model.backbone.model.language_model.parameters():
            parameter.mul_(1 if parameter.ndim == 1 else 6)
    return model


@pytest.fixture(scope="module")
def prompts(builder, samples):
    """The prompts of four samples with two, one, no and one teachers, so their lengths differ."""
    return [builder.encode(builder.converse(sample, sample.teachers, with_answer=False)) for sample in samples]


@pytest.fixture(scope="module")
def end(builder):
    return builder.tokenizer.end


def generate(model, prompts, builder, max_new_tokens=NUM_NEW):
    return generation.generate(model, left_pad(prompts, builder.picture_format), builder.tokenizer.end, max_new_tokens)


def with_answer(prompt, ids):
    """Return the conversation in which the student has answered with `ids`, as training would encode it."""
    first, steps = prompt.position_ids[:, -1:] + 1, torch.arange(len(ids))
    return replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, ids]),
        roles=torch.cat([prompt.roles, torch.full_like(ids, Role.STUDENT)]),
        position_ids=torch.cat([prompt.position_ids, first + steps], dim=1),
    )


def teacher_forced(model, collate, prompt, ids):
    """Return the probabilities of all tokens at each position of the answer, from the forward pass of training."""
    batch = collate("packed", [with_answer(prompt, ids)])
    student = batch.label_roles == Role.STUDENT
    with torch.no_grad():
        hidden = model.hidden_states(batch, model.encode_images(batch))[batch.supervised_positions[student]]
        return model.project(hidden).float().softmax(-1)


def up_to_end(ids, end):
    return ids[: ids.tolist().index(end) + 1] if end in ids else ids


def test_each_token_is_the_most_probable_one_of_the_training_forward_pass(
    model_at_each_scale, builder, prompts, collate, end
):
    generated, _ = generate(model_at_each_scale, prompts, builder)
    assert len(generated.ids.unique()) > 10
    assert len({len(prompt.input_ids) for prompt in prompts}) > 2
    for prompt, row, probabilities in zip(prompts, *generated, strict=True):
        ids = up_to_end(row, end)
        expected = teacher_forced(model_at_each_scale, collate, prompt, ids).max(-1)
        assert torch.equal(expected.indices, ids)
        torch.testing.assert_close(expected.values, probabilities[: len(ids)], rtol=1e-4, atol=1e-5)


def test_in_bfloat16_each_token_has_its_probability_in_the_training_forward_pass(
    make_model, builder, prompts, collate, end
):
    model = make_model("engine.precision=bf16")
    with torch.autocast("cpu", torch.bfloat16):
        generated, _ = generate(model, prompts, builder)
        for prompt, row, probabilities in zip(prompts, *generated, strict=True):
            ids = up_to_end(row, end)
            expected = teacher_forced(model, collate, prompt, ids).gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(expected, probabilities[: len(ids)], rtol=0.05, atol=1e-4)


def test_a_prompt_gets_the_same_answer_alone_and_among_longer_ones(model_at_each_scale, builder, prompts):
    together, detections = generate(model_at_each_scale, prompts, builder)
    for row, prompt in enumerate(prompts):
        alone, detections_alone = generate(model_at_each_scale, [prompt], builder)
        num = alone.ids.shape[1]
        assert torch.equal(alone.ids[0], together.ids[row, :num])
        torch.testing.assert_close(alone.probabilities[0], together.probabilities[row, :num], rtol=1e-4, atol=1e-6)
        boxes, boxes_alone = detections.boxes_cxcywh[:, row], detections_alone.boxes_cxcywh[:, 0]
        torch.testing.assert_close(boxes_alone, boxes, rtol=1e-4, atol=1e-5)


def test_the_head_detects_the_same_for_a_prompt_as_in_training(model_at_each_scale, builder, prompts, encoded, collate):
    _, detections = generate(model_at_each_scale, prompts, builder, 1)
    with torch.no_grad():
        expected = model_at_each_scale(collate("packed", encoded)).detections
    torch.testing.assert_close(detections.boxes_cxcywh, expected.boxes_cxcywh, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detections.objectness_logits, expected.objectness_logits, rtol=1e-4, atol=1e-4)


def test_generation_stops_at_the_end_token_of_each_row_or_at_the_limit(model, builder, prompts):
    batch = left_pad(prompts, builder.picture_format)
    free, _ = generation.generate(model, batch, -1, NUM_NEW)  # no token ends it
    assert free.ids.shape == free.probabilities.shape == (len(prompts), NUM_NEW)
    stop = int(free.ids[0, 3])  # take this token as the end token
    first = [ids.index(stop) if stop in ids else NUM_NEW for ids in free.ids.tolist()]
    stopped, _ = generation.generate(model, batch, stop, NUM_NEW)
    assert stopped.ids.shape[1] == min(max(first) + 1, NUM_NEW)
    for ids, free_ids, at in zip(stopped.ids, free.ids, first, strict=True):
        assert torch.equal(ids[: at + 1], free_ids[: min(at + 1, len(ids))])
        assert (ids[at:] == stop).all()


@pytest.mark.parametrize("training", [True, False])
def test_generation_restores_the_model_and_the_random_state(model, builder, prompts, training):
    model.train(training)
    names = [config._attn_implementation for config in (model.backbone.config, model.backbone.config.text_config)]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    generate(model, prompts[:2], builder, 3)
    assert names == [c._attn_implementation for c in (model.backbone.config, model.backbone.config.text_config)]
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_trains_with_checkpointing_still_generates_with_its_cache(model, builder, prompts):
    """transformers drops the cache of a layer with checkpointing."""
    plain, _ = generate(model, prompts, builder, 4)
    model.train()
    model.set_activation_checkpointing("full")
    checkpointed, _ = generate(model, prompts, builder, 4)
    assert torch.equal(plain.probabilities, checkpointed.probabilities)


def test_the_model_is_restored_when_generation_fails(model, builder, prompts, monkeypatch):
    before = model.backbone.config.text_config._attn_implementation

    def fail(_):
        raise MemoryError

    monkeypatch.setattr(model, "project", fail)
    with pytest.raises(MemoryError):
        generate(model, prompts, builder)
    assert model.backbone.config.text_config._attn_implementation == before
    assert model.training


def test_generation_changes_no_bit_of_later_gradients(make_model, make_criterion, builder, prompts, encoded, collate):
    def gradients(generates):
        model, criterion, batch = make_model(), make_criterion(), collate("packed", encoded)
        if generates:
            generate(model, prompts, builder, 3)
        criterion.objective(criterion(model(batch), batch), batch.counts).backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(map(torch.equal, gradients(True), gradients(False)))


def test_a_cache_that_grows_changes_nothing(model, builder, prompts, monkeypatch):
    at_once, _ = generate(model, prompts, builder)
    for growth in (1, 4, 11):
        monkeypatch.setattr(greedy_decoding, "CACHE_GROWTH", growth)
        in_parts, _ = generate(model, prompts, builder)
        assert torch.equal(at_once.ids, in_parts.ids)
        torch.testing.assert_close(at_once.probabilities, in_parts.probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_step_generates_the_same_as_an_eager_one(resolved_config, builder, prompts, monkeypatch, precision):
    gpu = torch.device("cuda")
    cfg = resolved_config(f"engine.precision={precision}", "head=none")
    torch.manual_seed(0)
    network = instantiate(cfg.model.network, _convert_="all")
    model = enlarge_weights(network(device=gpu, head=instantiate(cfg.head, _convert_="all")))
    batch = left_pad(prompts, builder.picture_format).to(gpu)
    monkeypatch.setattr(greedy_decoding, "CACHE_GROWTH", 9)

    def generate_on_gpu():
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            return generation.generate(model, batch, builder.tokenizer.end, 2 * NUM_NEW)[0]

    def run_eagerly(function, device):
        function()
        return function

    captured = generate_on_gpu(), generate_on_gpu()
    monkeypatch.setattr(greedy_decoding, "run_and_capture", run_eagerly)
    eager = generate_on_gpu()
    assert len(eager.ids.unique()) > 10
    for generated in captured:
        assert torch.equal(generated.ids, eager.ids)
        torch.testing.assert_close(generated.probabilities, eager.probabilities, rtol=1e-3, atol=1e-5)
