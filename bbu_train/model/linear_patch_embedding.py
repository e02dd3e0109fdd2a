"""The vision tower's patch embedding for still pictures, as one matrix product."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class LinearPatchEmbedding(nn.Module):
    """x -> W (x / 255 - mean) / std, with W the sum of the checkpoint's two temporal kernels.

    The stock embedding is a Conv3d over two frames, and a still picture repeats its frame: with both frames equal,
    W_0 x + W_1 x = (W_0 + W_1) x. So the patches are the bytes of one frame, an eighth of the stock input, and the
    convolution becomes one matrix product. The parameter keeps its name and shape.
    """

    def __init__(self, proj: nn.Conv3d, mean: list[float], std: list[float]):
        super().__init__()
        self.proj = proj
        num_pixels = proj.kernel_size[1] * proj.kernel_size[2]
        for name, values in (("mean", mean), ("std", std)):
            channels = torch.tensor(values, device=proj.weight.device).repeat_interleave(num_pixels)
            self.register_buffer(name, channels, persistent=False)

    def forward(self, patches: UInt8[Tensor, "patches 588"]) -> Float[Tensor, "patches width"]:
        normalised = (patches.float() / 255 - self.mean) / self.std
        weight = self.proj.weight.sum(dim=2).flatten(1)
        return nn.functional.linear(normalised.to(weight.dtype), weight)
