"""Spatially modulated cross-attention: each head of a query attends around a Gaussian (Gao et al. 2021, SMCA-DETR)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from bbu_train.types.batch import MemoryIndex

INITIAL_TEXT_BIAS = -4.0  # of the score of text; an image token in the centre of a Gaussian has 0
INITIAL_STD = 0.3  # of a Gaussian, in sizes of the box
IMAGE, TEXT, PADDING = 0, 1, 2  # kinds of memory entries


class GaussianModulation(nn.Module):
    """Predict the Gaussians of a query's heads. Head h of query q adds to its score of memory entry k:

    -1/2 |(x_k - c_q - o_qh s_q) / (r_qh s_q)|^2 for an image token with centre x_k, and t_qh for text.

    c and s are the centre and size of the query's box, whose sides count as at least one image token. o, r and t are
    linear in the query and start independent of it, with the heads spread over the box. So a query attends to its box
    before training, and what it learns moves with the box. Unlike in SMCA, offsets and standard
    deviations are in units of the query's box, and text has a learned bias.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projection = nn.Linear(d_model, 5 * num_heads)
        angles = 2 * torch.pi * torch.arange(num_heads) / num_heads
        offsets = torch.stack([angles.cos(), angles.sin()], dim=-1) / 4
        log_std = math.log(INITIAL_STD)
        others = torch.tensor([log_std, log_std, INITIAL_TEXT_BIAS]).expand(num_heads, 3)
        nn.init.zeros_(self.projection.weight)
        with torch.no_grad():
            self.projection.bias.copy_(torch.cat([offsets, others], dim=-1).flatten())

    def forward(
        self,
        queries: Float[Tensor, "samples queries model"],
        boxes_cxcywh: Float[Tensor, "samples queries 4"],
        token_sizes: Float[Tensor, "samples 2"],
    ) -> Float[Tensor, "samples queries heads 5"]:
        """Return the mean c + o s and the standard deviation r s in x and y, as fractions of the picture, and t."""
        parameters = self.projection(queries).float().unflatten(-1, (self.num_heads, 5))
        offsets, log_stds, text = parameters.split([2, 2, 1], dim=-1)
        centers, sizes = boxes_cxcywh[:, :, None].split(2, dim=-1)
        sizes = torch.maximum(sizes, token_sizes[:, None, None])
        return torch.cat([centers + offsets * sizes, log_stds.exp() * sizes, text], dim=-1)


class MemoryPositions(NamedTuple):
    """What the modulation needs to know of a memory, in fractions of the picture.

    An entry is (x, y, kind), with kind IMAGE, TEXT or PADDING, and x = y = 0 for text. `token_sizes` are width and
    height of an image token.
    """

    entries: Float[Tensor, "samples memory 3"]
    token_sizes: Float[Tensor, "samples 2"]


def memory_positions(index: MemoryIndex) -> MemoryPositions:
    kinds = torch.cat(
        [torch.where(index.vision_mask, IMAGE, PADDING), torch.where(index.text_mask, TEXT, PADDING)], dim=1
    )
    centers = pad(index.vision_centers, (0, 0, 0, index.text.shape[1]))
    return MemoryPositions(torch.cat([centers, kinds[..., None]], dim=-1), index.vision_sizes)


def modulated_attention(
    queries: Float[Tensor, "samples heads queries size"],
    keys: Float[Tensor, "samples heads memory size"],
    values: Float[Tensor, "samples heads memory size"],
    gaussians: Float[Tensor, "samples queries heads 5"],
    entries: Float[Tensor, "samples memory 3"],
) -> Float[Tensor, "samples heads queries size"]:
    """Return softmax(Q K^T / sqrt(size) + modulation_bias(gaussians, entries)) V. Padding is masked out.

    On a GPU in half precision the bias is computed inside the kernel and never stored. It would have hundreds of
    millions of elements per step, and reading and writing them would take most of the step's time.
    """
    if queries.is_cuda and queries.dtype != torch.float32:
        # Imported here, because only the GPU builds of torch come with Triton.
        from bbu_train.head.modulated_attention_function import fused_modulated_attention

        return fused_modulated_attention(queries, keys, values, gaussians, entries)
    return scaled_dot_product_attention(queries, keys, values, modulation_bias(gaussians, entries))


def modulation_bias(
    gaussians: Float[Tensor, "samples queries heads 5"], entries: Float[Tensor, "samples memory 3"]
) -> Float[Tensor, "samples heads queries memory"]:
    """Return what is added to the score of each pair: a log density up to a constant, t for text, -inf for padding."""
    mean_x, mean_y, std_x, std_y, text = gaussians.transpose(1, 2)[..., None].unbind(-2)
    x, y, kind = entries[:, None, None].unbind(-1)
    # Divisions of whole pairs, forward and backward, would take a tenth of a step on a CPU.
    scale_x, scale_y = 1 / (math.sqrt(2) * std_x), 1 / (math.sqrt(2) * std_y)
    distance_x = torch.addcmul(-mean_x * scale_x, x, scale_x)
    distance_y = torch.addcmul(-mean_y * scale_y, y, scale_y)
    log_density = -(distance_x.square() + distance_y.square())
    return torch.where(kind == IMAGE, log_density, text) + torch.where(kind == PADDING, -torch.inf, 0.0)
