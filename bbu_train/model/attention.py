"""Attention within segments of a packed row, for the stock transformers model.

One signature for the language model and the vision tower: queries, keys and values of shape (rows, heads, tokens,
head_size) and `cu_seq_lens_q`, the boundaries of the segments in the flattened rows. No token attends outside its
segment. Padding is a segment of its own, so padded and packed rows take the same path.

The registered names contain "flash" because transformers hands boundaries only to implementations of such names.
"""

import inspect
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from bbu_train.errors import InputError

CHOICES = ("auto", "sdpa", "varlen", "flash_attention_2", "flash_attention_4")
# What a choice needs besides torch: what lies in the folder flash_attn, which both packages fill, a module that it
# imports, and how they get there. flash-attn 2.8 has parts of cute, too, but not what compiles them.
PACKAGES = {
    "flash_attention_2": ("flash_attn_interface.py", "torch", "pip install --no-build-isolation 'flash-attn>=2.7'"),
    "flash_attention_4": ("cute", "cutlass", "pip install 'flash-attn-4[cu13]>=4.0.0b36'"),
}
FLASH_ATTENTION_4_MULTIPLE = 32  # channels of a head: for 80, the vision tower's, 4.0.0b36 gives wrong gradients
log = logging.getLogger(__name__)


def choose(attention: str, device: torch.device, dtype: torch.dtype) -> str:
    """The registered name for `model.attention`, a concrete choice for `auto`; refuses what cannot run here.

    sdpa runs anywhere. The others need CUDA and half precision: varlen is torch's own kernel, flash_attention_2 the
    flash-attn package, flash_attention_4 the flash-attn-4 package, which is the fastest on Hopper and not yet released.
    `auto` takes flash_attention_2 where it is installed, else varlen where torch has it, else sdpa.
    """
    fast = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if attention == "auto":
        attention = _best() if fast else "sdpa"
        log.info("model.attention=auto takes %s", attention)
    if attention not in CHOICES:
        raise InputError(f"model.attention={attention} is unknown; take one of {', '.join(CHOICES)}.")
    if attention != "sdpa" and not fast:
        raise InputError(
            f"model.attention={attention} needs a GPU and engine.precision=bf16; this run has {device} and {dtype}. "
            "Take model.attention=auto."
        )
    if attention in PACKAGES and not _has_package(attention):
        raise InputError(f"model.attention={attention} needs a package that is missing: {PACKAGES[attention][2]}.")
    if attention == "varlen" and not _has_varlen():
        raise InputError(f"model.attention=varlen needs torch 2.10 or later; this is {torch.__version__}.")
    return _registered(attention)


def is_kernel(name: str) -> bool:
    """Whether a registered name is one that needs CUDA and half precision."""
    return name != _registered("sdpa")


def _best() -> str:
    if _has_package("flash_attention_2"):
        return "flash_attention_2"
    return "varlen" if _has_varlen() else "sdpa"


def _has_varlen() -> bool:
    return find_spec("torch.nn.attention.varlen") is not None


def _has_package(attention: str) -> bool:
    """Found without importing it: a package that is built against another torch fails when it is used, and says so."""
    part, imported, _ = PACKAGES[attention]
    spec = find_spec("flash_attn")
    folders = spec.submodule_search_locations or () if spec else ()
    return any((Path(folder) / part).exists() for folder in folders) and find_spec(imported) is not None


def _registered(attention: str) -> str:
    return f"bbu_flash_{attention.removeprefix('flash_')}"


def flatten(states: Float[Tensor, "rows heads tokens size"]) -> Float[Tensor, "flat heads size"]:
    return states.transpose(1, 2).flatten(0, 1)


@torch.compiler.disable
def sdpa(
    module,
    query: Float[Tensor, "rows heads tokens size"],
    key: Float[Tensor, "rows kv_heads tokens size"],
    value: Float[Tensor, "rows kv_heads tokens size"],
    attention_mask: None,
    scaling: float,
    cu_seq_lens_q: Int[Tensor, "segments_and_one"],
    is_causal: bool | None = None,
    **_,
) -> tuple[Tensor, None]:
    """torch's attention over each segment; segments of one length go together in one call.

    A vision tower's windows mostly have one size, so a picture needs a few calls instead of hundreds. On a GPU the
    boundaries must come to the host here; `varlen` and `flash_attention_2` do without. Never compiled: code would be
    made again for every number of segments.
    """
    is_causal = module.is_causal if is_causal is None else is_causal
    bounds = cu_seq_lens_q.tolist()
    by_length: dict[int, list[int]] = {}
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        by_length.setdefault(end - start, []).append(start)
    flat = [flatten(states) for states in (query, key, value)]
    places, results = [], []
    for length, starts in by_length.items():
        place = torch.tensor(starts)[:, None] + torch.arange(length)
        places.append(place.flatten())
        place = place.to(query.device)
        q, k, v = (states[place].transpose(1, 2) for states in flat)
        result = scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scaling, enable_gqa=True)
        results.append(result.transpose(1, 2).flatten(0, 1))
    order = torch.cat(places).argsort().to(query.device)
    return torch.cat(results)[order].unflatten(0, (query.shape[0], query.shape[2])), None


def _varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, max_length: int, scaling: float, is_causal: bool):
    """torch's own kernel for segments."""
    from torch.nn.attention.varlen import varlen_attn

    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if "is_causal" in inspect.signature(varlen_attn).parameters:  # torch 2.10
        mask = {"is_causal": is_causal}
    else:
        mask = {"window_size": (-1, 0 if is_causal else -1)}
    return varlen_attn(q, k, v, bounds, bounds, max_length, max_length, scale=scaling, **mask)


def _flash_attention_2(q: Tensor, k: Tensor, v: Tensor, bounds, max_length: int, scaling: float, is_causal: bool):
    """Flash-attention 2 (Dao 2023) from the flash-attn package."""
    from flash_attn import flash_attn_varlen_func

    lengths = bounds, bounds, max_length, max_length
    return flash_attn_varlen_func(q, k, v, *lengths, softmax_scale=scaling, causal=is_causal)


def _flash_attention_4(q: Tensor, k: Tensor, v: Tensor, bounds, max_length: int, scaling: float, is_causal: bool):
    """Flash-attention 4 from the flash-attn-4 package, for heads of any size."""
    from bbu_train.model import flash_attention_4

    size = q.shape[-1]
    if missing := -size % FLASH_ATTENTION_4_MULTIPLE:
        q, k, v = (pad(its, (0, missing)) for its in (q, k, v))  # zeros change no product
    return flash_attention_4.flash_attention_4(q, k, v, bounds, max_length, scaling, is_causal)[..., :size]


def _with(kernel: Callable) -> Callable:
    """`kernel` with the signature of `sdpa`, over flattened rows in half precision. On CUDA only."""

    def attend(
        module,
        query: Float[Tensor, "rows heads tokens size"],
        key: Float[Tensor, "rows kv_heads tokens size"],
        value: Float[Tensor, "rows kv_heads tokens size"],
        attention_mask: None,
        scaling: float,
        cu_seq_lens_q: Int[Tensor, "segments_and_one"],
        max_length_q: int,
        is_causal: bool | None = None,
        **_,
    ) -> tuple[Tensor, None]:
        is_causal = module.is_causal if is_causal is None else is_causal
        # Positions are turned in float32.
        q, k, v = (flatten(states).to(value.dtype) for states in (query, key, value))
        out = kernel(q, k, v, cu_seq_lens_q, max_length_q, scaling, is_causal)
        return out.unflatten(0, (query.shape[0], query.shape[2])), None

    return attend


varlen, flash_attention_2, flash_attention_4 = map(_with, (_varlen, _flash_attention_2, _flash_attention_4))

for _choice, _function in zip(CHOICES[1:], (sdpa, varlen, flash_attention_2, flash_attention_4), strict=True):
    AttentionInterface.register(_registered(_choice), _function)
