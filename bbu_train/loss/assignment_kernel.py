"""The cheapest assignment on a GPU, so that the host need not wait for costs in the middle of a step."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


def assign(
    costs: Float[Tensor, "layers objects queries"], sample_of_object: Int[Tensor, "objects"], num_samples: int
) -> Int[Tensor, "layers objects"]:
    """The query of each object, as scipy's `linear_sum_assignment` finds them layer by layer and sample by sample.

    `costs` are finite and on a GPU, `sample_of_object` ascends, and no sample has more objects than there are queries.
    """
    num_layers, num_objects, num_queries = costs.shape
    bounds = torch.searchsorted(sample_of_object, torch.arange(num_samples + 1, device=costs.device))
    queries = torch.empty(num_layers, num_objects, dtype=torch.long, device=costs.device)
    columns = triton.next_power_of_2(num_queries)
    # One warp a problem: its steps depend on each other, and within a warp a minimum needs no barrier.
    _kernel[(num_samples, num_layers)](
        costs.contiguous(), bounds, queries, num_objects, num_queries, columns, num_warps=1
    )
    return queries


@triton.jit(do_not_specialize=["num_objects"])  # it differs from step to step
def _kernel(costs, bounds, queries, num_objects, num_queries, COLUMNS: tl.constexpr):
    """Shortest augmenting paths (Crouse 2016, as in scipy), a program for each sample and layer, in float64.

    Objects are rows and queries columns. `owner` is the row of a column, -1 for none, `price` the dual of a column;
    that of a row is what makes its own pair cost nothing.
    """
    first, end = tl.load(bounds + tl.program_id(0)), tl.load(bounds + tl.program_id(0) + 1)
    start = tl.program_id(1).to(tl.int64) * num_objects + first  # of this sample's objects in this layer
    columns = tl.arange(0, COLUMNS)
    real = columns < num_queries
    owner, price = tl.full((COLUMNS,), -1, tl.int32), tl.zeros((COLUMNS,), tl.float64)
    for new in range(0, (end - first).to(tl.int32)):
        # Dijkstra from the new row, over columns, to the nearest that nobody owns.
        distance, came = tl.full((COLUMNS,), float("inf"), tl.float64), tl.full((COLUMNS,), -1, tl.int32)
        closed, reached = columns >= num_queries, tl.min(tl.zeros((COLUMNS,), tl.float64), 0)
        row, column, is_found = new, -1, False
        while not is_found:
            cost = tl.load(costs + (start + row) * num_queries + columns, real, 0.0).to(tl.float64)
            dual = tl.sum(tl.where(columns == column, cost - price, 0.0), 0)
            through = reached + cost - dual - price
            is_better = (closed == 0) & (through < distance)
            distance, came = tl.where(is_better, through, distance), tl.where(is_better, row, came)
            still = tl.where(closed, float("inf"), distance)
            reached = tl.min(still, 0)
            column = tl.min(tl.where((closed == 0) & (still == reached), columns, COLUMNS), 0)
            closed = closed | (columns == column)
            row = tl.sum(tl.where(columns == column, owner, 0), 0)
            is_found = row < 0
        price -= tl.where(closed & real, reached - distance, 0.0)
        # Back along the path, each row takes the column by which the path left it.
        row = -1
        while row != new:
            row = tl.sum(tl.where(columns == column, came, 0), 0)
            before = tl.max(tl.where(owner == row, columns, -1), 0)
            owner = tl.where(columns == column, row, owner)
            column = before
    tl.store(queries + start + owner, columns.to(tl.int64), owner >= 0)
