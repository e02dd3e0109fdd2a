"""Attention within the segments of packed rows, registered as attention functions of transformers.

All functions share one signature, for the language model and the vision tower: queries, keys and values of shape (rows,
heads, tokens, head_size) and `cu_seq_lens_q`, the boundaries of the segments in the flattened rows. No token attends
outside its segment. Padding is a segment of its own, so padded and packed rows take the same path.

The registered names contain "flash" because transformers passes the boundaries only to functions with such names.
"""

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from bbu_train.errors import InputError

CHOICES = ("sdpa", "varlen", "flash_attention_2", "flash_attention_4")
# What each choice needs besides torch: (a file or folder inside flash_attn/, a module that the package imports, the
# command that installs it). Both packages install into flash_attn/, and flash-attn 2.8 has a folder `cute` there too,
# so only cutlass identifies flash-attn-4.
PACKAGES = {
    "flash_attention_2": ("flash_attn_interface.py", "torch", "pip install --no-build-isolation 'flash-attn>=2.7'"),
    "flash_attention_4": ("cute", "cutlass", "pip install 'flash-attn-4[cu13]>=4.0.0b36'"),
}
HOPPER = 9, 0  # compute capability of the first GPUs that flash-attention 4 runs on
# flash-attn-4 4.0.0b36 gives wrong gradients for heads of 80 channels, the vision tower's, so heads are padded.
FLASH_ATTENTION_4_MULTIPLE = 32


def resolve_attention_name(attention: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the registered name for `model.attention`. Raise InputError if that kernel cannot run here.

    sdpa runs anywhere. The others need CUDA and half precision: varlen is torch's own kernel, flash_attention_2 comes
    from the flash-attn package, flash_attention_4 from flash-attn-4, which is the fastest on Hopper but a beta release.
    """
    can_run_kernels = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if attention not in CHOICES:
        raise InputError(f"model.attention={attention} is unknown; take one of {', '.join(CHOICES)}.")
    if attention != "sdpa" and not can_run_kernels:
        raise InputError(
            f"model.attention={attention} needs a GPU and engine.precision=bf16; this run has {device} and {dtype}. "
            "Take model.attention=auto."
        )
    if attention in PACKAGES and not _has_package(attention):
        raise InputError(f"model.attention={attention} needs a package that is missing: {PACKAGES[attention][2]}.")
    if attention == "varlen" and not _has_varlen():
        raise InputError(f"model.attention=varlen needs torch 2.10 or later; this is {torch.__version__}.")
    return _registered_name(attention)


def is_kernel(name: str) -> bool:
    """Whether the function registered as `name` needs CUDA and half precision."""
    return name != _registered_name("sdpa")


def fastest_installed(capability: tuple[int, int]) -> str:
    """Return the fastest choice that is installed here, for a GPU of this compute capability and half precision."""
    if capability >= HOPPER and _has_package("flash_attention_4"):
        return "flash_attention_4"
    if _has_package("flash_attention_2"):
        return "flash_attention_2"
    return "varlen" if _has_varlen() else "sdpa"


def _has_varlen() -> bool:
    return find_spec("torch.nn.attention.varlen") is not None


def _has_package(attention: str) -> bool:
    """Look for the package without importing it: if it was built for another torch, its first use says so."""
    entry, dependency, _ = PACKAGES[attention]
    spec = find_spec("flash_attn")
    folders = spec.submodule_search_locations or () if spec else ()
    return any((Path(folder) / entry).exists() for folder in folders) and find_spec(dependency) is not None


def _registered_name(attention: str) -> str:
    return f"bbu_flash_{attention.removeprefix('flash_')}"


def flatten(states: Float[Tensor, "rows heads tokens size"]) -> Float[Tensor, "flat heads size"]:
    return states.transpose(1, 2).flatten(0, 1)


@runtime_checkable
class AttentionModule(Protocol):
    """The attribute that an attention function reads from the module that calls it."""

    is_causal: bool


@torch.compiler.disable
def sdpa(
    module: AttentionModule,
    query: Float[Tensor, "rows heads tokens size"],
    key: Float[Tensor, "rows kv_heads tokens size"],
    value: Float[Tensor, "rows kv_heads tokens size"],
    attention_mask: None,
    scaling: float,
    cu_seq_lens_q: Int[Tensor, "segments_and_one"],
    is_causal: bool | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Apply torch's attention to each segment, with one call for all segments of the same length.

    Most windows of a vision tower have the same size, so a picture needs a few calls instead of hundreds. On a GPU the
    boundaries must be copied to the host, which `varlen` and `flash_attention_2` avoid. This function is never
    compiled, because every new number of segments would need a new graph.
    """
    is_causal = module.is_causal if is_causal is None else is_causal
    bounds = cu_seq_lens_q.tolist()
    starts_by_length: dict[int, list[int]] = {}
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        starts_by_length.setdefault(end - start, []).append(start)
    flat = [flatten(states) for states in (query, key, value)]
    indices, results = [], []
    for length, starts in starts_by_length.items():
        index = torch.tensor(starts)[:, None] + torch.arange(length)
        indices.append(index.flatten())
        index = index.to(query.device)
        q, k, v = (states[index].transpose(1, 2) for states in flat)
        result = scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scaling, enable_gqa=True)
        results.append(result.transpose(1, 2).flatten(0, 1))
    order = torch.cat(indices).argsort().to(query.device)
    return torch.cat(results)[order].unflatten(0, (query.shape[0], query.shape[2])), None


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, max_length: int, scaling: float, is_causal: bool
) -> Tensor:
    """torch's own kernel for segments of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if "is_causal" in inspect.signature(varlen_attn).parameters:  # torch 2.10
        mask = {"is_causal": is_causal}
    else:
        mask = {"window_size": (-1, 0 if is_causal else -1)}
    return varlen_attn(q, k, v, bounds, bounds, max_length, max_length, scale=scaling, **mask)


def _flash_attention_2(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, max_length: int, scaling: float, is_causal: bool
) -> Tensor:
    """Flash-attention 2 (Dao 2023) from the flash-attn package."""
    from flash_attn import flash_attn_varlen_func

    lengths = bounds, bounds, max_length, max_length
    return flash_attn_varlen_func(q, k, v, *lengths, softmax_scale=scaling, causal=is_causal)


def _flash_attention_4(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, max_length: int, scaling: float, is_causal: bool
) -> Tensor:
    """Flash-attention 4 from the flash-attn-4 package, for heads of any size."""
    from bbu_train.model import flash_attention_4

    size = q.shape[-1]
    if missing := -size % FLASH_ATTENTION_4_MULTIPLE:
        q, k, v = (pad(states, (0, missing)) for states in (q, k, v))  # zero channels change no product
    return flash_attention_4.flash_attention_4(q, k, v, bounds, max_length, scaling, is_causal)[..., :size]


def _adapt(kernel: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Give `kernel`, which takes flattened rows in half precision on CUDA, the signature of `sdpa`."""

    def attend(
        module: AttentionModule,
        query: Float[Tensor, "rows heads tokens size"],
        key: Float[Tensor, "rows kv_heads tokens size"],
        value: Float[Tensor, "rows kv_heads tokens size"],
        attention_mask: None,
        scaling: float,
        cu_seq_lens_q: Int[Tensor, "segments_and_one"],
        max_length_q: int,
        is_causal: bool | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        is_causal = module.is_causal if is_causal is None else is_causal
        # Rotary embeddings are applied in float32, so queries and keys come in float32.
        q, k, v = (flatten(states).to(value.dtype) for states in (query, key, value))
        out = kernel(q, k, v, cu_seq_lens_q, max_length_q, scaling, is_causal)
        return out.unflatten(0, (query.shape[0], query.shape[2])), None

    return attend


varlen, flash_attention_2, flash_attention_4 = map(_adapt, (_varlen, _flash_attention_2, _flash_attention_4))

for _choice, _function in zip(CHOICES, (sdpa, varlen, flash_attention_2, flash_attention_4), strict=True):
    AttentionInterface.register(_registered_name(_choice), _function)
