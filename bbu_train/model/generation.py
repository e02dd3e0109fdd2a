"""Written answers: the likeliest next token, again and again, for many prompts at once and with a cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.types import Batch, Detections


class Written(NamedTuple):
    """Token ids of each row, the end token after its end, and the probability that each token had."""

    ids: Int[Tensor, "rows new"]
    probabilities: Float[Tensor, "rows new"]


@torch.no_grad()
def answer(
    model: GroundingModel, batch: Batch, end_token: int, max_new_tokens: int
) -> tuple[Written, Detections | None]:
    """Both answers to the prompts of a left-padded batch, from one run of the vision tower.

    The prompts are read as in training, attention included; only their keys and values are kept besides. Greedy, until
    every row has ended or has `max_new_tokens`, 1 or more. The model comes back as it was. Autocast is the caller's.
    """
    last_is_text = batch.sample_of_token[:, -1].tolist() == list(range(len(batch.sample_ids)))
    assert last_is_text, "rows that do not end with their sample: lay prompts out by left_padded"
    with _evaluating(model):
        cache = DynamicCache(config=model.backbone.config.text_config)
        vision_features = model.see(batch)
        hidden = model.read(batch, vision_features, cache)
        last = hidden.view(*batch.input_ids.shape, -1)[:, -1]
        with _stock_attention(model):
            written = _write(model, batch, last, cache, end_token, max_new_tokens)
        return written, model.detect(batch, vision_features, hidden)


def _write(
    model: GroundingModel,
    batch: Batch,
    hidden: Float[Tensor, "rows width"],
    cache: DynamicCache,
    end_token: int,
    max_new_tokens: int,
) -> Written:
    """`hidden` are the last states of the prompts, which `cache` holds."""
    num_rows, num_slots = batch.input_ids.shape
    embed = model.backbone.get_input_embeddings()
    positions = batch.position_ids[1:, :, -1:] + 1  # after text all three count on together
    is_token = _room(batch.sample_of_token >= 0, max_new_tokens)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=hidden.device)
    ids, probabilities = [], []
    for step in range(max_new_tokens):
        if step > 0:
            hidden = model.backbone.model.language_model(
                inputs_embeds=embed(ids[-1])[:, None],
                position_ids=positions + step - 1,
                attention_mask=is_token[:, None, None, : num_slots + step],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        likeliest = model.project(hidden).float().softmax(-1).max(-1)
        ids.append(likeliest.indices.masked_fill(ended, end_token))
        probabilities.append(likeliest.values.masked_fill(ended, 1.0))
        ended = ended | (ids[-1] == end_token)
        if ended.all():
            break
    return Written(torch.stack(ids, dim=1), torch.stack(probabilities, dim=1))


def _room(is_token: Bool[Tensor, "rows slots"], num_new: int) -> Bool[Tensor, "rows all_slots"]:
    return torch.cat([is_token, is_token.new_ones(len(is_token), num_new)], dim=1)


@contextmanager
def _evaluating(model: GroundingModel) -> Iterator[None]:
    """In evaluation mode and uncompiled: a cache that grows token by token would be compiled again and again."""
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(was_training)


@contextmanager
def _stock_attention(model: GroundingModel) -> Iterator[None]:
    """transformers' own sdpa in the language model, which takes a mask over the cache and a single query."""
    backbone = model.backbone
    before = backbone.config.text_config._attn_implementation
    backbone.set_attn_implementation({"text_config": "sdpa"})
    try:
        yield
    finally:
        backbone.set_attn_implementation({"text_config": before})
