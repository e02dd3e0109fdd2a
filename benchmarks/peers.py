"""The peers of throughput.py: the stock transformers model, padded with SDPA or packed with flash-attention 2.

Not a program of its own: `python benchmarks/throughput.py contenders=packed,padded` runs it.

Both use full logits, gradient checkpointing, fused AdamW, and float32 weights under bfloat16 autocast.
"""

import time
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from bbu_train.types.batch import Encoded
from bbu_train.types.samples import Role


def build(config: Qwen2_5_VLConfig, attention: str) -> tuple[Qwen2_5_VLForConditionalGeneration, torch.optim.AdamW]:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train(), torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def pixels(samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Return what the stock image processor returns: normalised float32 patches, each frame twice."""
    patches = torch.cat([sample.patches for sample in samples]).view(-1, 3, 196).float() / 255
    mean, std = (torch.tensor(values)[:, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    frames = ((patches - mean) / std)[:, :, None].expand(-1, -1, 2, -1).flatten(1)
    return {"pixel_values": frames, "image_grid_thw": torch.cat([sample.grid_thw for sample in samples])}


def labels(sample: Encoded) -> torch.Tensor:
    return sample.input_ids.masked_fill(sample.roles == Role.NONE, -100)


def pad(samples: Sequence[Encoded], image_token: int) -> dict[str, torch.Tensor]:
    ids = pad_sequence([sample.input_ids for sample in samples], batch_first=True)
    return pixels(samples) | {
        "input_ids": ids,
        "attention_mask": pad_sequence([torch.ones_like(sample.input_ids) for sample in samples], batch_first=True),
        "mm_token_type_ids": (ids == image_token).int(),
        "labels": pad_sequence([labels(sample) for sample in samples], batch_first=True, padding_value=-100),
    }


def pack(samples: Sequence[Encoded], image_token: int) -> dict[str, torch.Tensor | int]:
    lengths = [len(sample.input_ids) for sample in samples]
    text_positions = torch.cat([torch.arange(length) for length in lengths])
    positions = torch.cat([sample.position_ids for sample in samples], dim=1)
    # The first label of each sample is ignored: it would be predicted from the sample before it.
    labels_of_samples = [torch.cat([torch.tensor([-100]), labels(sample)[1:]]) for sample in samples]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return pixels(samples) | {
        "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
        "position_ids": torch.cat([text_positions[None], positions])[:, None],
        "labels": torch.cat(labels_of_samples)[None],
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def run(
    config: Qwen2_5_VLConfig, layout: str, steps: Sequence[Sequence[Encoded]], num_warmup_steps: int
) -> dict[str, float]:
    """Return seconds per step after the warm-up, and peak memory. Inputs are ready before the clock starts."""
    collate, attention = {"padded": (pad, "sdpa"), "packed": (pack, "flash_attention_2")}[layout]
    model, optimizer = build(config, attention)
    inputs = [collate(samples, config.image_token_id) for samples in steps]
    for i, step in enumerate(inputs):
        if i == num_warmup_steps:
            torch.cuda.synchronize()
            start = time.perf_counter()
        on_device = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in step.items()}
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**on_device, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / (len(inputs) - num_warmup_steps)
    return {"step_seconds": seconds, "memory_gib": torch.cuda.max_memory_allocated() / 2**30}
