"""Generated answers, for many prompts at once, beside what the head finds in their pictures."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import DynamicCache

from bbu_train.model.greedy_decoding import GeneratedTokens, Writer
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Detections


@torch.no_grad()
def generate(
    model: GroundingModel, batch: Batch, end_token: int, max_new_tokens: int
) -> tuple[GeneratedTokens, Detections | None]:
    """Both answers to the prompts of a left-padded batch, from one run of the vision tower.

    The prompts are read as in training, attention included; only their keys and values are kept besides. Greedy, until
    every row has ended or has `max_new_tokens`, 1 or more. The model comes back as it was. Autocast is the caller's.
    """
    last_is_text = batch.sample_of_token[:, -1].tolist() == list(range(len(batch.sample_ids)))
    assert last_is_text, "rows that do not end with their sample: lay prompts out by left_padded"
    language_model, embed = model.backbone.model.language_model, model.backbone.get_input_embeddings()
    with _evaluating(model):
        cache = DynamicCache(config=language_model.config)
        vision_features = model.encode_images(batch)
        hidden = model.hidden_states(batch, vision_features, cache)
        prompts = cache, batch.sample_of_token >= 0, batch.position_ids[1:]
        writer = Writer(language_model, embed, model.project, *prompts, end_token, max_new_tokens)
        with _stock_attention(model):
            written = writer.write(hidden.view(*batch.input_ids.shape, -1)[:, -1])
        return written, model.detect(batch, vision_features, hidden)


@contextmanager
def _evaluating(model: GroundingModel) -> Iterator[None]:
    """In evaluation mode and uncompiled: a cache that grows would be compiled again and again."""
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
