"""The orthogonal matrix near each matrix of a batch, computed in memory that is allocated once."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Coefficients of x, x^3 and x^5 in a Newton-Schulz step: the slope at 0 is as large as possible while singular values
near 1 stay near 1 (Jordan 2024)."""
NUM_ITERATIONS = 5


class NewtonSchulz:
    """Five Newton-Schulz iterations (Jordan 2024) for batches of up to the largest of `shapes`.

    On a GPU they run in bfloat16, which is accurate enough for a target this rough.
    """

    def __init__(self, shapes: Iterable[tuple[int, int, int]], device: torch.device):
        shapes = list(shapes)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        size = max(batch * rows * columns for batch, rows, columns in shapes)
        gram_size = max(batch * min(rows, columns) ** 2 for batch, rows, columns in shapes)
        num_norms = max(batch * (min(rows, columns) + 1) for batch, rows, columns in shapes)
        self.iterates = [torch.empty(size, dtype=dtype, device=device) for _ in range(2)]
        self.grams = [torch.empty(gram_size, dtype=dtype, device=device) for _ in range(2)]
        self.norms = torch.empty(num_norms, device=device)

    def orthogonalize_(self, matrices: Float[Tensor, "batch rows columns"]) -> None:
        """Replace each U S V^T by U S' V^T. Nothing is allocated, but `matrices` must be contiguous.

        Singular values above a hundredth of the matrix's norm end between 0.65 and 1.25.
        """
        wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
        matrices.div_(self._norm(matrices))
        x, other = (buffer[: wide.numel()].view(wide.shape) for buffer in self.iterates)
        gram_shape = len(wide), wide.shape[1], wide.shape[1]
        gram, polynomial = (buffer[: gram_shape[0] * gram_shape[1] ** 2].view(gram_shape) for buffer in self.grams)
        x.copy_(wide)
        a, b, c = COEFFICIENTS
        for _ in range(NUM_ITERATIONS):
            torch.bmm(x, x.mT, out=gram)
            torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
            torch.baddbmm(x, polynomial, x, beta=a, out=other)
            x, other = other, x
        wide.copy_(x)

    def _norm(self, matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch 1 1"]:
        """Return the Frobenius norms, at least 1e-7: first of rows, as a reduction to few numbers allocates memory."""
        by_row = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
        shape = len(matrices), by_row.shape[1], 1
        rows, norms = self.norms[: shape[0] * (shape[1] + 1)].split([shape[0] * shape[1], shape[0]])
        torch.linalg.vector_norm(by_row, dim=2, keepdim=True, out=rows.view(shape))
        torch.linalg.vector_norm(rows.view(shape), dim=1, keepdim=True, out=norms.view(-1, 1, 1))
        return norms.clamp_(min=1e-7).view(-1, 1, 1)
