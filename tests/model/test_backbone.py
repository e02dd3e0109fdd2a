"""Loading a checkpoint: the values of transformers' own loading, without a float32 copy on the host."""

import resource
from multiprocessing import SimpleQueue

import pytest
import torch
from forked import processes
from omegaconf import OmegaConf
from transformers import AutoImageProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.model.backbone import load_backbone
from bbu_train.model.shape import configuration

CPU = torch.device("cpu")
WIDE = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 6}  # 160 MB in bfloat16


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    Qwen2VLImageProcessorPil().save_pretrained(folder)


@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_those_of_transformers_cast_from_float32(tmp_path, make_model, stored, dtype, num_shards):
    backbone = make_model("head=none").backbone.to(stored)
    size = sum(p.numel() * p.element_size() for p in backbone.parameters())
    backbone.config.dtype = torch.bfloat16  # what the config says does not matter
    save(backbone, tmp_path, max_shard_size=size // num_shards + 1)
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    loaded = load_backbone(backbone.config, str(tmp_path), "pretrained", CPU, dtype)
    expected = {name: p.to(dtype if p.ndim >= 2 else torch.float32) for name, p in reference.named_parameters()}
    torch.testing.assert_close(dict(loaded.named_parameters()), expected, rtol=0, atol=0)
    buffers = dict(loaded.named_buffers())
    torch.testing.assert_close(
        {name: buffers[name] for name, _ in reference.named_buffers()}, dict(reference.named_buffers()), rtol=0, atol=0
    )
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def measure(folder: str, config: Qwen2_5_VLConfig, results: SimpleQueue) -> None:
    """Put the growth of this process's largest resident size, in bytes, into the queue. Each weight is read once."""
    AutoImageProcessor.from_pretrained(folder)  # imports what is part of no checkpoint
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for parameter in load_backbone(config, folder, "pretrained", CPU, torch.bfloat16).parameters():
        parameter.sum()
    results.put(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def test_loading_takes_hardly_more_memory_than_the_checkpoint(tmp_path, config):
    shape = OmegaConf.to_container(config().model.shape)
    shape |= {"text_config": shape["text_config"] | WIDE, "tie_word_embeddings": False}
    shape["vision_config"]["out_hidden_size"] = WIDE["hidden_size"]
    config = configuration(None, "random", shape)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    save(model.to_empty(device="cpu"), tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    results = processes.SimpleQueue()
    process = processes.Process(target=measure, args=(str(tmp_path), config, results))
    process.start()
    process.join()
    assert size > 150e6
    growth = results.get()
    assert growth < 1.2 * size
