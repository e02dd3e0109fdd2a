"""Solve assignments on a GPU, so that the host does not wait for the costs in the middle of a step."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


def assign(
    costs: Float[Tensor, "layers objects queries"], sample_of_object: Int[Tensor, "objects"], num_samples: int
) -> Int[Tensor, "layers objects"]:
    """Return the query of each object: scipy's `linear_sum_assignment` for each layer and sample.

    `costs` must be finite and on a GPU, and `sample_of_object` in ascending order. No sample may have more objects than
    there are queries.
    """
    num_layers, num_objects, num_queries = costs.shape
    bounds = torch.searchsorted(sample_of_object, torch.arange(num_samples + 1, device=costs.device))
    query_of_object = torch.empty(num_layers, num_objects, dtype=torch.long, device=costs.device)
    columns = triton.next_power_of_2(num_queries)
    # One warp for each problem: the steps depend on each other, and a minimum within a warp needs no barrier.
    _kernel[(num_samples, num_layers)](
        costs.contiguous(), bounds, query_of_object, num_objects, num_queries, columns, num_warps=1
    )
    return query_of_object


@triton.jit(do_not_specialize=["num_objects"])  # it changes at every step
def _kernel(costs, bounds, query_of_object, num_objects, num_queries, COLUMNS: tl.constexpr):
    """Shortest augmenting paths (Crouse 2016, as in scipy) in float64, with a program for each sample and layer.

    Objects are rows and queries are columns. `row_of_column` is -1 for a free column. `column_dual` is the dual
    variable of a column; that of a row makes the reduced cost of its assigned column zero.
    """
    first, end = tl.load(bounds + tl.program_id(0)), tl.load(bounds + tl.program_id(0) + 1)
    start = tl.program_id(1).to(tl.int64) * num_objects + first  # of this sample's objects in this layer
    columns = tl.arange(0, COLUMNS)
    is_real = columns < num_queries
    row_of_column, column_dual = tl.full((COLUMNS,), -1, tl.int32), tl.zeros((COLUMNS,), tl.float64)
    for new_row in range(0, (end - first).to(tl.int32)):
        # Dijkstra from the new row over columns, to the nearest free column.
        distance, previous_row = tl.full((COLUMNS,), float("inf"), tl.float64), tl.full((COLUMNS,), -1, tl.int32)
        is_closed, path_cost = columns >= num_queries, tl.min(tl.zeros((COLUMNS,), tl.float64), 0)
        row, column, is_free = new_row, -1, False
        while not is_free:
            cost = tl.load(costs + (start + row) * num_queries + columns, is_real, 0.0).to(tl.float64)
            row_dual = tl.sum(tl.where(columns == column, cost - column_dual, 0.0), 0)
            new_distance = path_cost + cost - row_dual - column_dual
            is_better = (is_closed == 0) & (new_distance < distance)
            distance, previous_row = tl.where(is_better, new_distance, distance), tl.where(is_better, row, previous_row)
            open_distance = tl.where(is_closed, float("inf"), distance)
            path_cost = tl.min(open_distance, 0)
            column = tl.min(tl.where((is_closed == 0) & (open_distance == path_cost), columns, COLUMNS), 0)
            is_closed = is_closed | (columns == column)
            row = tl.sum(tl.where(columns == column, row_of_column, 0), 0)
            is_free = row < 0
        column_dual -= tl.where(is_closed & is_real, path_cost - distance, 0.0)
        # Augment: back along the path, assign each row the column by which the path left it.
        row = -1
        while row != new_row:
            row = tl.sum(tl.where(columns == column, previous_row, 0), 0)
            old_column = tl.max(tl.where(row_of_column == row, columns, -1), 0)
            row_of_column = tl.where(columns == column, row, row_of_column)
            column = old_column
    tl.store(query_of_object + start + row_of_column, columns.to(tl.int64), row_of_column >= 0)
