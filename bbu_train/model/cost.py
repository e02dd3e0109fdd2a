"""The cost of a sample, computed from its size alone. Work is divided among ranks and steps by it."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import Qwen2_5_VLConfig


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of the backbone for a sample, forward and backward:

        cost = per_token L + per_token_squared L^2 + sum over pictures (per_patch n + per_patch_squared n^2)

    for L tokens and pictures of n patches. The cost serves to compare samples, not to be reported: it takes all weights
    as trained and leaves out the logits, whose number depends on the answer, and the head. Whole numbers keep sums
    exact.
    """

    per_token: int
    per_token_squared: int
    per_patch: int
    per_patch_squared: int

    def __call__(self, num_tokens: int, num_patches: Sequence[int]) -> int:
        """Return the cost of a sample; `num_patches` has one number for each picture."""
        language = self.per_token * num_tokens + self.per_token_squared * num_tokens**2
        return language + sum(self.per_patch * n + self.per_patch_squared * n**2 for n in num_patches)


def from_config(config: Qwen2_5_VLConfig) -> Cost:
    """Return the coefficients for a model of these sizes.

    A weight takes 6 operations for each token: two in the forward pass and four in the backward pass. Attention among n
    tokens of width d takes 12 n^2 d operations, half of that if it is causal; a block with windows of w patches takes
    12 n w d.
    """
    text, tower = config.text_config, config.vision_config
    width, key_width = text.hidden_size, text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    layer = 2 * width**2 + 2 * width * key_width + 3 * width * text.intermediate_size
    block = 4 * tower.hidden_size**2 + 3 * tower.hidden_size * tower.intermediate_size
    num_full = len(tower.fullatt_block_indexes)
    window_patches = (tower.window_size // tower.patch_size) ** 2
    merged_patches = tower.spatial_merge_size**2
    merged_width = tower.hidden_size * merged_patches
    merger = merged_width**2 + merged_width * tower.out_hidden_size  # applied once for each `merged_patches` patches
    return Cost(
        per_token=6 * text.num_hidden_layers * layer,
        per_token_squared=6 * text.num_hidden_layers * width,
        per_patch=6 * (tower.depth * block + merger // merged_patches)
        + 12 * (tower.depth - num_full) * window_patches * tower.hidden_size,
        per_patch_squared=12 * num_full * tower.hidden_size,
    )
