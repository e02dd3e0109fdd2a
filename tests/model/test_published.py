"""The published layout: names as servers look them up, shards and index, and the files of the preprocessing."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoTokenizer

from bbu_train.model import published
from bbu_train.model.padding import cut_vision_mlp, pad_vision_mlp
from bbu_train.model.shape import configuration

# How vLLM names the weights that it reads, from vllm/model_executor/models/qwen2_5_vl.py of vllm-project/vllm at commit
# fb33ec8cf0a73c82af00a2128dee4ad058d16e9b: `hf_to_vllm_mapper`, the first prefix that matches; then the products that
# `Qwen2_5_VisionTransformer.load_weights` and Qwen2ForCausalLM (qwen2.py, the same commit) join.
VLLM_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}
VLLM_JOINED = {
    "visual.": {"mlp.gate_proj.": "mlp.gate_up_proj.", "mlp.up_proj.": "mlp.gate_up_proj."},
    "language_model.": {
        **{f"self_attn.{name}_proj.": "self_attn.qkv_proj." for name in "qkv"},
        **{f"mlp.{name}_proj.": "mlp.gate_up_proj." for name in ("gate", "up")},
    },
}
KINDS = ("weight", "bias")
VLLM_BLOCK = [
    *("norm1.weight", "norm2.weight"),
    *(f"{name}.{kind}" for name in ("attn.qkv", "attn.proj", "mlp.gate_up_proj", "mlp.down_proj") for kind in KINDS),
]
VLLM_LAYER = [
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *("self_attn.qkv_proj.weight", "self_attn.qkv_proj.bias", "self_attn.o_proj.weight"),
    *("mlp.gate_up_proj.weight", "mlp.down_proj.weight"),
]
VLLM_OTHERS = [
    *("visual.patch_embed.proj.weight", "visual.merger.ln_q.weight"),
    *(f"visual.merger.mlp.{index}.{kind}" for index in (0, 2) for kind in KINDS),
    *("language_model.model.embed_tokens.weight", "language_model.model.norm.weight"),
]


def vllm_name(name):
    prefix = next((prefix for prefix in VLLM_PREFIXES if name.startswith(prefix)), "")
    name = VLLM_PREFIXES.get(prefix, "") + name.removeprefix(prefix)
    joined = VLLM_JOINED[next(part for part in VLLM_JOINED if name.startswith(part))]
    return next((name.replace(own, other) for own, other in joined.items() if own in name), name)


def vllm_parameters(config):
    """The parameters of vLLM's model."""
    blocks = [f"visual.blocks.{i}.{name}" for i in range(config.vision_config.depth) for name in VLLM_BLOCK]
    layers = range(config.text_config.num_hidden_layers)
    names = [*VLLM_OTHERS, *blocks, *(f"language_model.model.layers.{i}.{name}" for i in layers for name in VLLM_LAYER)]
    return {*names, *([] if config.tie_word_embeddings else ["language_model.lm_head.weight"])}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def written(request, config, monkeypatch, tmp_path):
    """The stock config, random weights by their stock names, and the folder into which they were written in shards."""
    shape = OmegaConf.to_container(config().model.shape)
    stock = configuration(None, "random", shape | {"tie_word_embeddings": request.param})
    weights = {name: torch.rand(each.shape) for name, each in published.empty_model(stock).named_parameters()}
    monkeypatch.setattr(published, "MAX_SHARD_SIZE", "1MB")
    published.write_model(tmp_path, stock, weights, 1, 2)
    return stock, weights, tmp_path


def test_vllm_finds_every_weight_in_the_shards_that_the_index_names(written):
    stock, weights, folder = written
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    tensors = {}
    for shard in set(index.values()):
        with safe_open(folder / shard, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys() if index[name] == shard}  # noqa: SIM118
    assert tensors.keys() == index.keys()
    assert {vllm_name(name) for name in index} == vllm_parameters(stock)
    assert len(tensors) == len(weights)
    assert sum(float(each.double().sum()) for each in tensors.values()) == pytest.approx(
        sum(float(each.double().sum()) for each in weights.values())
    )


def test_the_files_of_the_preprocessing_hold_the_pixel_limits_and_the_chat_template(preprocessing, tmp_path):
    published.write_preprocessing(tmp_path, None, "random", preprocessing.tokenizer, preprocessing.picture_format)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    limits = preprocessing.picture_format.min_pixels, preprocessing.picture_format.max_pixels
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == limits
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == preprocessing.tokenizer.chat_template
    assert tokenizer.get_vocab() == preprocessing.tokenizer.get_vocab()


@pytest.mark.parametrize("multiple", [1, 64])
def test_cutting_undoes_padding(make_model, multiple):
    model = make_model("head=none").backbone
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    pad_vision_mlp(model.model.visual, multiple)
    padded = dict(model.named_parameters())
    width = model.config.vision_config.intermediate_size
    assert (padded["model.visual.blocks.0.mlp.down_proj.weight"].shape[1] > width) == (multiple > 1)
    after = cut_vision_mlp(padded, width)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], each) for name, each in before.items())
