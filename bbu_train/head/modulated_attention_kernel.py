"""The Triton kernels of modulated_attention_function.py, with a program for each tile of queries, or of keys, of each
head of a sample."""

import triton
import triton.language as tl

IMAGE, TEXT, PADDING = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # as in modulated_attention.py
MASK_BIAS = tl.constexpr(-1e30)  # finite, so that a tile of only padding gives no NaN; other tiles outweigh it


@triton.jit
def _row_pointers(
    base, sample, head, rows, num_rows, HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr
):
    """Return pointers to rows of one head of a tensor (samples, rows, heads, SIZE), and which of them are real."""
    channels = tl.arange(0, PADDED_SIZE)[None, :]
    row_index = (sample * num_rows + rows[:, None]).to(tl.int64) * HEADS + head
    return base + row_index * SIZE + channels, (rows[:, None] < num_rows) & (channels < SIZE)


@triton.jit
def _load(base, sample, head, rows, num_rows, HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr):
    pointers, is_real = _row_pointers(base, sample, head, rows, num_rows, HEADS, SIZE, PADDED_SIZE)
    return tl.load(pointers, is_real, 0.0)


@triton.jit
def _store(
    base, sample, head, rows, num_rows, values, HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr
):
    pointers, is_real = _row_pointers(base, sample, head, rows, num_rows, HEADS, SIZE, PADDED_SIZE)
    tl.store(pointers, values.to(base.dtype.element_ty), is_real)


@triton.jit
def _load_gaussians(gaussians, sample, head, rows, num_rows, HEADS: tl.constexpr):
    """Return mean x and y, standard deviation x and y, and text bias of each query."""
    pointers, is_real = gaussians + ((sample * num_rows + rows).to(tl.int64) * HEADS + head) * 5, rows < num_rows
    mean_x, mean_y = tl.load(pointers, is_real, 0.0), tl.load(pointers + 1, is_real, 0.0)
    std_x, std_y = tl.load(pointers + 2, is_real, 1.0), tl.load(pointers + 3, is_real, 1.0)
    return mean_x, mean_y, std_x, std_y, tl.load(pointers + 4, is_real, 0.0)


@triton.jit
def _load_entries(entries, sample, columns, num_columns):
    pointers, is_real = entries + (sample * num_columns + columns).to(tl.int64) * 3, columns < num_columns
    return tl.load(pointers, is_real, 0.0), tl.load(pointers + 1, is_real, 0.0), tl.load(pointers + 2, is_real, 2.0)


@triton.jit
def _bias(x, y, kind, text):
    """Return the modulation of scores, for distances x and y in standard deviations."""
    return tl.where(kind == IMAGE, -(x * x + y * y) / 2, tl.where(kind == TEXT, text, MASK_BIAS))


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def forward(
    q, k, v, gaussians, entries, out, log_sum_exp, num_queries, num_keys, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    sample, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    queries = _load(q, sample, head, rows, num_queries, HEADS, SIZE, PADDED_SIZE)
    mean_x, mean_y, std_x, std_y, text = _load_gaussians(gaussians, sample, head, rows, num_queries, HEADS)
    row_max, row_sum = tl.full((QUERIES,), float("-inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
    out_rows = tl.zeros((QUERIES, PADDED_SIZE), tl.float32)
    for start in range(0, num_keys, KEYS):
        columns = start + tl.arange(0, KEYS)
        keys = _load(k, sample, head, columns, num_keys, HEADS, SIZE, PADDED_SIZE)
        scores = tl.dot(queries, tl.trans(keys)) * scale
        x, y, kind = _load_entries(entries, sample, columns, num_keys)
        x = (x[None, :] - mean_x[:, None]) / std_x[:, None]
        y = (y[None, :] - mean_y[:, None]) / std_y[:, None]
        scores += _bias(x, y, kind[None, :], text[:, None])
        old_max, row_max = row_max, tl.maximum(row_max, tl.max(scores, 1))
        weights, rescale = tl.exp(scores - row_max[:, None]), tl.exp(old_max - row_max)
        values = _load(v, sample, head, columns, num_keys, HEADS, SIZE, PADDED_SIZE)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        out_rows = out_rows * rescale[:, None] + tl.dot(weights.to(values.dtype), values)
    _store(out, sample, head, rows, num_queries, out_rows / row_sum[:, None], HEADS, SIZE, PADDED_SIZE)
    row_index = (sample * HEADS + head) * num_queries + rows
    tl.store(log_sum_exp + row_index, row_max + tl.log(row_sum), rows < num_queries)


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def backward_of_queries(
    q, k, v, gaussians, entries, out, log_sum_exp, d_out, d_q, d_gaussians, delta, num_queries, num_keys, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """With P = softmax(S) and O = P V: dP = dO V^T and dS = P (dP - delta), where delta = sum(O dO) is stored."""
    sample, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    queries = _load(q, sample, head, rows, num_queries, HEADS, SIZE, PADDED_SIZE)
    out_rows = _load(out, sample, head, rows, num_queries, HEADS, SIZE, PADDED_SIZE)
    d_out_rows = _load(d_out, sample, head, rows, num_queries, HEADS, SIZE, PADDED_SIZE)
    row_index = (sample * HEADS + head) * num_queries + rows
    log_sum_exp_rows = tl.load(log_sum_exp + row_index, rows < num_queries, 0.0)
    delta_rows = tl.sum(out_rows.to(tl.float32) * d_out_rows.to(tl.float32), 1)
    tl.store(delta + row_index, delta_rows, rows < num_queries)
    mean_x, mean_y, std_x, std_y, text = _load_gaussians(gaussians, sample, head, rows, num_queries, HEADS)
    d_queries = tl.zeros((QUERIES, PADDED_SIZE), tl.float32)
    d_mean_x, d_mean_y = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES,), tl.float32)
    d_std_x, d_std_y = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES,), tl.float32)
    d_text = tl.zeros((QUERIES,), tl.float32)
    for start in range(0, num_keys, KEYS):
        columns = start + tl.arange(0, KEYS)
        keys = _load(k, sample, head, columns, num_keys, HEADS, SIZE, PADDED_SIZE)
        x, y, kind = _load_entries(entries, sample, columns, num_keys)
        x = (x[None, :] - mean_x[:, None]) / std_x[:, None]
        y = (y[None, :] - mean_y[:, None]) / std_y[:, None]
        scores = tl.dot(queries, tl.trans(keys)) * scale + _bias(x, y, kind[None, :], text[:, None])
        d_weights = tl.dot(d_out_rows, tl.trans(_load(v, sample, head, columns, num_keys, HEADS, SIZE, PADDED_SIZE)))
        d_scores = tl.exp(scores - log_sum_exp_rows[:, None]) * (d_weights - delta_rows[:, None])
        d_queries += tl.dot(d_scores.to(keys.dtype), keys)
        d_image_scores = tl.where(kind[None, :] == IMAGE, d_scores, 0.0)
        d_mean_x += tl.sum(d_image_scores * x, 1)
        d_mean_y += tl.sum(d_image_scores * y, 1)
        d_std_x += tl.sum(d_image_scores * x * x, 1)
        d_std_y += tl.sum(d_image_scores * y * y, 1)
        d_text += tl.sum(tl.where(kind[None, :] == TEXT, d_scores, 0.0), 1)
    _store(d_q, sample, head, rows, num_queries, d_queries * scale, HEADS, SIZE, PADDED_SIZE)
    pointers, is_real = (
        d_gaussians + ((sample * num_queries + rows).to(tl.int64) * HEADS + head) * 5,
        rows < num_queries,
    )
    tl.store(pointers, d_mean_x / std_x, is_real)
    tl.store(pointers + 1, d_mean_y / std_y, is_real)
    tl.store(pointers + 2, d_std_x / std_x, is_real)
    tl.store(pointers + 3, d_std_y / std_y, is_real)
    tl.store(pointers + 4, d_text, is_real)


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def backward_of_keys(
    q, k, v, gaussians, entries, log_sum_exp, d_out, delta, d_k, d_v, num_queries, num_keys, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dV = P^T dO and dK = dS^T Q. All tiles are transposed here: keys are rows, queries are columns."""
    sample, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    columns = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    keys = _load(k, sample, head, columns, num_keys, HEADS, SIZE, PADDED_SIZE)
    values = _load(v, sample, head, columns, num_keys, HEADS, SIZE, PADDED_SIZE)
    key_x, key_y, kind = _load_entries(entries, sample, columns, num_keys)
    d_keys, d_values = tl.zeros((KEYS, PADDED_SIZE), tl.float32), tl.zeros((KEYS, PADDED_SIZE), tl.float32)
    for start in range(0, num_queries, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        queries = _load(q, sample, head, rows, num_queries, HEADS, SIZE, PADDED_SIZE)
        d_out_rows = _load(d_out, sample, head, rows, num_queries, HEADS, SIZE, PADDED_SIZE)
        row_index = (sample * HEADS + head) * num_queries + rows
        # Queries beyond the last get weight exp(-inf) = 0.
        log_sum_exp_rows = tl.load(log_sum_exp + row_index, rows < num_queries, float("inf"))
        delta_rows = tl.load(delta + row_index, rows < num_queries, 0.0)
        mean_x, mean_y, std_x, std_y, text = _load_gaussians(gaussians, sample, head, rows, num_queries, HEADS)
        x = (key_x[:, None] - mean_x[None, :]) / std_x[None, :]
        y = (key_y[:, None] - mean_y[None, :]) / std_y[None, :]
        scores = tl.dot(keys, tl.trans(queries)) * scale + _bias(x, y, kind[:, None], text[None, :])
        weights = tl.exp(scores - log_sum_exp_rows[None, :])
        d_values += tl.dot(weights.to(d_out_rows.dtype), d_out_rows)
        d_scores = weights * (tl.dot(values, tl.trans(d_out_rows)) - delta_rows[None, :])
        d_keys += tl.dot(d_scores.to(queries.dtype), queries)
    _store(d_k, sample, head, columns, num_keys, d_keys * scale, HEADS, SIZE, PADDED_SIZE)
    _store(d_v, sample, head, columns, num_keys, d_values, HEADS, SIZE, PADDED_SIZE)
