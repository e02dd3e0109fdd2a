"""The whole model with each attention kernel in bfloat16 on a GPU, compared with torch's own attention in float32."""

from functools import cache, partial
from statistics import median

import pytest
import torch
from hydra.utils import instantiate

from bbu_train.errors import InputError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels run on CUDA only")
GPU = torch.device("cuda")
build = partial(instantiate, _convert_="all")
# Heads as wide as in the published models (128 in the language model, 80 in the vision tower) and weights as small.
WIDE = [
    "model.shape.text_config.initializer_range=0.02",
    "model.shape.vision_config.initializer_range=0.02",
    "model.shape.text_config.hidden_size=512",
    "model.shape.text_config.rope_parameters.mrope_section=[16,24,24]",
    "model.shape.vision_config.hidden_size=320",
    "model.shape.vision_config.out_hidden_size=512",
]
KERNELS = ["varlen", "flash_attention_2", "flash_attention_4"]
NUM_DRAWS = 15  # different random weights
# A factor for the weights of queries and keys. Fresh ones attend almost uniformly, which would hide a wrong scale.
SHARPENING = 4


def sharpen(model):
    for name, parameter in model.named_parameters():
        if "language_model" in name and ("q_proj" in name or "k_proj" in name):
            parameter.mul_(SHARPENING)
        if "visual" in name and "attn.qkv" in name:
            parameter[: len(parameter) // 3 * 2].mul_(SHARPENING)


@pytest.fixture(scope="module")
def make(resolved_config):
    """A function from overrides and a seed of the weights to a model on the GPU and its criterion."""

    def make(*overrides, draw=0):
        cfg = resolved_config(*WIDE, *overrides)
        torch.manual_seed(draw)
        try:
            model, criterion = build(cfg.model.network)(device=GPU, head=build(cfg.head)), build(cfg.loss)
        except InputError as error:  # a package that is not installed
            pytest.skip(str(error))
        with torch.no_grad():
            sharpen(model)
        return model, criterion

    return make


def fixed_matcher(model, criterion, batch):
    """Return a matcher that gives the matching of this model's boxes, whatever the predictions of other models."""
    batch = batch.to(GPU)
    with torch.no_grad():
        queries = criterion.matcher(model(batch).detections, batch)
    return lambda detections, batch: queries


def losses_and_gradient(model, criterion, batch, precision, matcher):
    """Return the losses, and the gradients of all parameters for each part of the model."""
    batch = batch.to(GPU)
    criterion.matcher = matcher
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        losses = criterion(model(batch), batch)
    criterion.objective(losses, batch.counts).backward()
    parts = {"vision": "visual.blocks", "llm": "language_model", "head": "head."}
    gradients = {
        part: torch.cat([p.grad.float().flatten() for name, p in model.named_parameters() if pattern in name])
        for part, pattern in parts.items()
    }
    return {name: loss.item() for name, loss in losses.items()}, gradients


def relative_errors(gradients, expected):
    return {
        part: ((gradient - expected[part]).norm() / expected[part].norm()).item()
        for part, gradient in gradients.items()
    }


@pytest.fixture(scope="module")
def exact(make, collate, encoded):
    """The matching, the losses and the gradients in float32, for each draw of weights."""
    batch = collate("packed", encoded)

    def compute(draw):
        model, criterion = make("engine.precision=fp32", "model.attention=sdpa", draw=draw)
        matcher = fixed_matcher(model, criterion, batch)
        return matcher, *losses_and_gradient(model, criterion, batch, "fp32", matcher)

    return [compute(draw) for draw in range(NUM_DRAWS)]


@pytest.fixture(scope="module")
def median_errors(make, collate, encoded, exact):
    """A function from `model.attention` to the errors of its bfloat16 gradients, for each part of the model."""
    batch = collate("packed", encoded)

    @cache
    def compute(attention):
        errors = []
        for draw, (matcher, exact_losses, exact_gradients) in enumerate(exact):
            model, criterion = make("engine.precision=bf16", f"model.attention={attention}", draw=draw)
            losses, gradients = losses_and_gradient(model, criterion, batch, "bf16", matcher)
            assert losses == pytest.approx(exact_losses, rel=2e-2)
            errors.append(relative_errors(gradients, exact_gradients))
        return {part: median(error[part] for error in errors) for part in errors[0]}

    return compute


@pytest.mark.parametrize("attention", KERNELS)
def test_every_kernel_gives_the_losses_and_gradients_of_torchs_attention(attention, median_errors):
    """A kernel may be as far from float32 as torch's own attention in bfloat16: that much is rounding.

    All models use the matching of the float32 model. Otherwise, where two queries cost nearly the same, rounding would
    decide, and the head's gradients would differ by a quarter. With one matching they still differ by 0.7% to 5%,
    depending on the draw of weights, so the test compares medians over many draws.
    """
    errors, torch_errors = median_errors(attention), median_errors("sdpa")
    for part in errors:
        assert errors[part] < 1.25 * torch_errors[part] + 5e-3, (errors, torch_errors)


@pytest.mark.parametrize("attention", KERNELS)
def test_no_kernel_lets_a_sample_attend_to_another(attention, make, collate, encoded):
    model, _ = make("engine.precision=bf16", f"model.attention={attention}")
    batch = collate("packed", encoded).to(GPU)
    first = batch.sample_of_token[0] == 0
    changed = torch.where(first & (batch.input_ids[0] < 200), 7, batch.input_ids[0])[None]
    assert (changed != batch.input_ids).any()
    hidden = []
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        features = model.encode_images(batch)
        for ids in (batch.input_ids, changed):
            batch.input_ids.copy_(ids)
            hidden.append(model.hidden_states(batch, features))
    assert torch.equal(hidden[0][~first], hidden[1][~first])
    assert not torch.equal(hidden[0][first], hidden[1][first])
