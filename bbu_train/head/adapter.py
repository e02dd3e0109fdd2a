"""Adapters from the backbone's width to the head's."""

from jaxtyping import Float
from torch import Tensor, nn


class Adapter(nn.Module):
    """P(n + U gelu(D n)) with n = LayerNorm(x), a residual bottleneck of width / ratio (Houlsby et al. 2019).

    P projects to `d_model`. U starts at zero, so at first the adapter only normalises and projects.
    """

    def __init__(self, width: int, ratio: int, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, width // ratio)
        self.up = nn.Linear(width // ratio, width)
        self.project = nn.Linear(width, d_model)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Float[Tensor, "*n width"]) -> Float[Tensor, "*n model"]:
        normalised = self.norm(features)
        return self.project(normalised + self.up(nn.functional.gelu(self.down(normalised))))
