"""Greedy generation for a batch of prompts, along with the head's detections for the same pictures."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import DynamicCache

from bbu_train.model.greedy_decoding import GeneratedTokens, GreedyDecoder
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Detections


@torch.no_grad()
def generate(
    model: GroundingModel, batch: Batch, end_token: int, max_new_tokens: int
) -> tuple[GeneratedTokens, Detections | None]:
    """Return the generated tokens and the detections for a left-padded batch, from one run of the vision tower.

    Prompts run through the same forward pass and attention as in training; their keys and values are also cached.
    Decoding is greedy and stops when every row has ended or has `max_new_tokens` (at least 1) tokens. The model's mode
    and attention are restored afterwards. The caller chooses autocast.
    """
    ends_with_sample = batch.sample_of_token[:, -1].tolist() == list(range(len(batch.sample_ids)))
    assert ends_with_sample, "some rows do not end with their sample: lay prompts out by left_pad"
    language_model, embed = model.backbone.model.language_model, model.backbone.get_input_embeddings()
    with _evaluation_mode(model):
        cache = DynamicCache(config=language_model.config)
        vision_features = model.encode_images(batch)
        hidden = model.hidden_states(batch, vision_features, cache)
        prompts = cache, batch.sample_of_token >= 0, batch.position_ids[1:]
        decoder = GreedyDecoder(language_model, embed, model.project, *prompts, end_token, max_new_tokens)
        with _stock_attention(model):
            generated = decoder.decode(hidden.view(*batch.input_ids.shape, -1)[:, -1])
        return generated, model.detect(batch, vision_features, hidden)


@contextmanager
def _evaluation_mode(model: GroundingModel) -> Iterator[None]:
    """Put the model into evaluation mode without compilation: a growing cache would be recompiled again and again."""
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(was_training)


@contextmanager
def _stock_attention(model: GroundingModel) -> Iterator[None]:
    """Use transformers' sdpa in the language model: it accepts a mask over the cache and a single query per row."""
    backbone = model.backbone
    before = backbone.config.text_config._attn_implementation
    backbone.set_attn_implementation({"text_config": "sdpa"})
    try:
        yield
    finally:
        backbone.set_attn_implementation({"text_config": before})
