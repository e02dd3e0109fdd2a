"""Writing with a cache against the forward pass of training, fed the same tokens."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate

from bbu_train.collator.prompts import left_padded
from bbu_train.model import generation, greedy_decoding
from bbu_train.types.samples import Role

NUM_NEW = 12


@pytest.fixture(params=[0, 1])
def model(make_model, request):
    return lively(make_model(f"model.image_position_scale={request.param}"))


def lively(model):
    """With larger weights: fresh ones write the same few tokens whatever they are given."""
    with torch.no_grad():
        for parameter in model.backbone.model.language_model.parameters():
            parameter.mul_(1 if parameter.ndim == 1 else 6)
    return model


@pytest.fixture(scope="module")
def prompts(builder, samples):
    """Of four samples, with two, one, no and one teachers: lengths differ."""
    return [builder.encode(builder.converse(sample, sample.teachers, with_answer=False)) for sample in samples]


@pytest.fixture(scope="module")
def end(builder):
    return builder.text.end


def write(model, prompts, builder, max_new_tokens=NUM_NEW):
    return generation.generate(model, left_padded(prompts, builder.picture_format), builder.text.end, max_new_tokens)


def with_answer(prompt, ids):
    """The conversation in which the student has answered with `ids`: what training would be given."""
    first, steps = prompt.position_ids[:, -1:] + 1, torch.arange(len(ids))
    return replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, ids]),
        roles=torch.cat([prompt.roles, torch.full_like(ids, Role.STUDENT)]),
        position_ids=torch.cat([prompt.position_ids, first + steps], dim=1),
    )


def teacher_forced(model, collate, prompt, ids):
    """The likeliest token and its probability at each place of the answer, from the forward pass of training."""
    batch = collate("packed", [with_answer(prompt, ids)])
    student = batch.label_roles == Role.STUDENT
    with torch.no_grad():
        hidden = model.hidden_states(batch, model.encode_images(batch))[batch.supervised_positions[student]]
        return model.project(hidden).float().softmax(-1)


def up_to_end(ids, end):
    return ids[: ids.tolist().index(end) + 1] if end in ids else ids


def test_each_token_is_the_likeliest_of_the_training_forward_fed_the_tokens_before(
    model, builder, prompts, collate, end
):
    written, _ = write(model, prompts, builder)
    assert len(written.ids.unique()) > 10
    assert len({len(prompt.input_ids) for prompt in prompts}) > 2
    for prompt, row, probabilities in zip(prompts, *written, strict=True):
        ids = up_to_end(row, end)
        expected = teacher_forced(model, collate, prompt, ids).max(-1)
        assert torch.equal(expected.indices, ids)
        torch.testing.assert_close(expected.values, probabilities[: len(ids)], rtol=1e-4, atol=1e-5)


def test_in_bfloat16_each_token_has_the_probability_of_the_training_forward(make_model, builder, prompts, collate, end):
    model = make_model("engine.precision=bf16")
    with torch.autocast("cpu", torch.bfloat16):
        written, _ = write(model, prompts, builder)
        for prompt, row, probabilities in zip(prompts, *written, strict=True):
            ids = up_to_end(row, end)
            expected = teacher_forced(model, collate, prompt, ids).gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(expected, probabilities[: len(ids)], rtol=0.05, atol=1e-4)


def test_one_prompt_gives_the_same_answer_alone_and_among_longer_ones(model, builder, prompts):
    among, found = write(model, prompts, builder)
    for row, prompt in enumerate(prompts):
        alone, found_alone = write(model, [prompt], builder)
        num = alone.ids.shape[1]
        assert torch.equal(alone.ids[0], among.ids[row, :num])
        torch.testing.assert_close(alone.probabilities[0], among.probabilities[row, :num], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found_alone.boxes_cxcywh[:, 0], found.boxes_cxcywh[:, row], rtol=1e-4, atol=1e-5)


def test_the_head_says_of_a_prompt_what_it_says_in_training(model, builder, prompts, encoded, collate):
    _, found = write(model, prompts, builder, 1)
    with torch.no_grad():
        expected = model(collate("packed", encoded)).detections
    torch.testing.assert_close(found.boxes_cxcywh, expected.boxes_cxcywh, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.objectness_logits, expected.objectness_logits, rtol=1e-4, atol=1e-4)


def test_writing_ends_with_the_end_token_of_each_row_or_at_the_limit(model, builder, prompts, end):
    free, _ = write(model, prompts, builder)
    assert free.ids.shape == free.probabilities.shape == (len(prompts), NUM_NEW)
    stop = int(free.ids[0, 3])  # as if this were the end token
    first = [ids.index(stop) if stop in ids else NUM_NEW for ids in free.ids.tolist()]
    batch = left_padded(prompts, builder.picture_format)
    stopped, _ = generation.generate(model, batch, stop, NUM_NEW)
    assert stopped.ids.shape[1] == min(max(first) + 1, NUM_NEW)
    for ids, before, at in zip(stopped.ids, free.ids, first, strict=True):
        assert torch.equal(ids[: at + 1], before[: min(at + 1, len(ids))])
        assert (ids[at:] == stop).all()


@pytest.mark.parametrize("training", [True, False])
def test_writing_leaves_the_model_and_the_generators_as_they_were(model, builder, prompts, training):
    model.train(training)
    names = [config._attn_implementation for config in (model.backbone.config, model.backbone.config.text_config)]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    write(model, prompts[:2], builder, 3)
    assert names == [c._attn_implementation for c in (model.backbone.config, model.backbone.config.text_config)]
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_trains_with_checkpointing_writes_with_its_cache_all_the_same(model, builder, prompts):
    """transformers drops the cache of a layer that is to be computed again."""
    plain, _ = write(model, prompts, builder, 4)
    model.train()
    model.enable_gradient_checkpointing("full")
    checkpointed, _ = write(model, prompts, builder, 4)
    assert torch.equal(plain.probabilities, checkpointed.probabilities)


def test_a_model_comes_back_as_it_was_when_writing_fails(model, builder, prompts, monkeypatch):
    before = model.backbone.config.text_config._attn_implementation

    def fail(_):
        raise MemoryError

    monkeypatch.setattr(model, "project", fail)
    with pytest.raises(MemoryError):
        write(model, prompts, builder)
    assert model.backbone.config.text_config._attn_implementation == before
    assert model.training


def test_training_goes_on_after_writing_bit_for_bit(make_model, make_criterion, builder, prompts, encoded, collate):
    def gradients(writes):
        model, criterion, batch = make_model(), make_criterion(), collate("packed", encoded)
        if writes:
            write(model, prompts, builder, 3)
        criterion.objective(criterion(model(batch), batch), batch.counts).backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(map(torch.equal, gradients(True), gradients(False)))


@pytest.mark.parametrize("room", [1, 4, 11])
def test_a_cache_that_grows_changes_nothing(model, builder, prompts, monkeypatch, room):
    at_once, _ = write(model, prompts, builder)
    monkeypatch.setattr(greedy_decoding, "ROOM", room)
    in_parts, _ = write(model, prompts, builder)
    assert torch.equal(at_once.ids, in_parts.ids)
    torch.testing.assert_close(at_once.probabilities, in_parts.probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="steps are recorded on CUDA only")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_step_writes_what_one_told_kernel_by_kernel_does(config, builder, prompts, monkeypatch, precision):
    gpu = torch.device("cuda")
    cfg = config(f"engine.precision={precision}", "head=none")
    torch.manual_seed(0)
    network = instantiate(cfg.model.network, _convert_="all")
    model = lively(network(device=gpu, head=instantiate(cfg.head, _convert_="all")))
    batch = left_padded(prompts, builder.picture_format).to(gpu)
    monkeypatch.setattr(greedy_decoding, "ROOM", 9)

    def write():
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            return generation.generate(model, batch, builder.text.end, 2 * NUM_NEW)[0]

    def told(function, device):
        function()
        return function

    recorded = write(), write()
    monkeypatch.setattr(greedy_decoding, "done_once", told)
    plain = write()
    assert len(plain.ids.unique()) > 10
    for one in recorded:
        assert torch.equal(one.ids, plain.ids)
        torch.testing.assert_close(one.probabilities, plain.probabilities, rtol=1e-3, atol=1e-5)
