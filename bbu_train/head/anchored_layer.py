"""The decoder layer of `Dino`: attention around anchor boxes."""

from jaxtyping import Bool, Float
from torch import Tensor

from bbu_train.head.layers import DecoderLayer, KeysValues
from bbu_train.head.modulated_attention import GaussianModulation, MemoryPositions, modulated_attention


class AnchoredLayer(DecoderLayer):
    """One pre-norm decoder layer: self-attention within each group, cross-attention around the boxes, feed-forward."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__(d_model, num_heads)
        self.modulation = GaussianModulation(d_model, num_heads)

    def forward(
        self,
        queries: Float[Tensor, "samples groups queries model"],
        query_pos: Float[Tensor, "samples groups queries model"],
        boxes_cxcywh: Float[Tensor, "samples groups queries 4"],
        mask: Bool[Tensor, "samples_groups queries"] | None,
        memory: KeysValues,
        memory_pos: MemoryPositions,
    ) -> Float[Tensor, "samples groups queries model"]:
        """`mask` is False for queries to ignore. `memory` needs no mask: padding is marked in `memory_pos`."""
        samples_groups = queries.shape[:2]
        normalised = self.norms[0](queries)
        with_pos = (normalised + query_pos).flatten(0, 1)
        keys_values = self.self_attention.keys_values(with_pos, normalised.flatten(0, 1), mask)
        queries = queries + self.self_attention(with_pos, keys_values).unflatten(0, samples_groups)
        # Groups do not attend to each other, but all attend to the memory, as one sequence of queries.
        with_pos = (self.norms[1](queries) + query_pos).flatten(1, 2)
        gaussians = self.modulation(with_pos, boxes_cxcywh.flatten(1, 2), memory_pos.token_sizes)
        projected = self.cross_attention.project_queries(with_pos)
        attended = modulated_attention(projected, *memory, gaussians, memory_pos.entries)
        queries = queries + self.cross_attention.project_output(attended).unflatten(1, queries.shape[1:3])
        return queries + self.feed_forward(self.norms[2](queries))
