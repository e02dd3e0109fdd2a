"""The kernels of gaze_attention.py: one program for each head of a sample and each tile of queries, or of keys."""

import triton
import triton.language as tl

IMAGE, TEXT, NOTHING = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # as in gaze.py
BARRED = tl.constexpr(-1e30)  # finite, so that a tile of nothing is no NaN before another tile outweighs it


@triton.jit
def _rows(first, sample, head, rows, num_rows, HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers to these rows of one head of a tensor (samples, rows, heads, SIZE), and which of their numbers exist."""
    channels = tl.arange(0, WIDTH)[None, :]
    line = (sample * num_rows + rows[:, None]).to(tl.int64) * HEADS + head
    return first + line * SIZE + channels, (rows[:, None] < num_rows) & (channels < SIZE)


@triton.jit
def _load(first, sample, head, rows, num_rows, HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    at, is_real = _rows(first, sample, head, rows, num_rows, HEADS, SIZE, WIDTH)
    return tl.load(at, is_real, 0.0)


@triton.jit
def _store(first, sample, head, rows, num_rows, values, HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    at, is_real = _rows(first, sample, head, rows, num_rows, HEADS, SIZE, WIDTH)
    tl.store(at, values.to(first.dtype.element_ty), is_real)


@triton.jit
def _looks(looks, sample, head, rows, num_rows, HEADS: tl.constexpr):
    """Middles, spreads and text of these queries, one after the other."""
    at, real = looks + ((sample * num_rows + rows).to(tl.int64) * HEADS + head) * 5, rows < num_rows
    middle_x, middle_y = tl.load(at, real, 0.0), tl.load(at + 1, real, 0.0)
    spread_x, spread_y = tl.load(at + 2, real, 1.0), tl.load(at + 3, real, 1.0)
    return middle_x, middle_y, spread_x, spread_y, tl.load(at + 4, real, 0.0)


@triton.jit
def _entries(entries, sample, columns, num_columns):
    at, real = entries + (sample * num_columns + columns).to(tl.int64) * 3, columns < num_columns
    return tl.load(at, real, 0.0), tl.load(at + 1, real, 0.0), tl.load(at + 2, real, 2.0)


@triton.jit
def _added(x, y, kind, text):
    """What the look adds, of distances in spreads."""
    return tl.where(kind == IMAGE, -(x * x + y * y) / 2, tl.where(kind == TEXT, text, BARRED))


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def forward(
    q, k, v, looks, entries, out, log_sums, num_queries, num_keys, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    sample, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    queries = _load(q, sample, head, rows, num_queries, HEADS, SIZE, WIDTH)
    middle_x, middle_y, spread_x, spread_y, text = _looks(looks, sample, head, rows, num_queries, HEADS)
    most, total = tl.full((QUERIES,), float("-inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
    read = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(0, num_keys, KEYS):
        columns = start + tl.arange(0, KEYS)
        keys = _load(k, sample, head, columns, num_keys, HEADS, SIZE, WIDTH)
        scores = tl.dot(queries, tl.trans(keys)) * scale
        x, y, kind = _entries(entries, sample, columns, num_keys)
        x = (x[None, :] - middle_x[:, None]) / spread_x[:, None]
        y = (y[None, :] - middle_y[:, None]) / spread_y[:, None]
        scores += _added(x, y, kind[None, :], text[:, None])
        before, most = most, tl.maximum(most, tl.max(scores, 1))
        weights, shrink = tl.exp(scores - most[:, None]), tl.exp(before - most)
        values = _load(v, sample, head, columns, num_keys, HEADS, SIZE, WIDTH)
        total = total * shrink + tl.sum(weights, 1)
        read = read * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
    _store(out, sample, head, rows, num_queries, read / total[:, None], HEADS, SIZE, WIDTH)
    line = (sample * HEADS + head) * num_queries + rows
    tl.store(log_sums + line, most + tl.log(total), rows < num_queries)


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def backward_of_queries(
    q, k, v, looks, entries, out, log_sums, gradient, d_q, d_looks, common, num_queries, num_keys, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """With P = softmax(S) and O = P V: dP = dO V^T and dS = P (dP - sum(O dO)). That sum is kept in `common`."""
    sample, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    queries = _load(q, sample, head, rows, num_queries, HEADS, SIZE, WIDTH)
    read = _load(out, sample, head, rows, num_queries, HEADS, SIZE, WIDTH)
    d_read = _load(gradient, sample, head, rows, num_queries, HEADS, SIZE, WIDTH)
    line = (sample * HEADS + head) * num_queries + rows
    log_sum = tl.load(log_sums + line, rows < num_queries, 0.0)
    shared = tl.sum(read.to(tl.float32) * d_read.to(tl.float32), 1)
    tl.store(common + line, shared, rows < num_queries)
    middle_x, middle_y, spread_x, spread_y, text = _looks(looks, sample, head, rows, num_queries, HEADS)
    d_queries = tl.zeros((QUERIES, WIDTH), tl.float32)
    d_middle_x, d_middle_y = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES,), tl.float32)
    d_spread_x, d_spread_y = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES,), tl.float32)
    d_text = tl.zeros((QUERIES,), tl.float32)
    for start in range(0, num_keys, KEYS):
        columns = start + tl.arange(0, KEYS)
        keys = _load(k, sample, head, columns, num_keys, HEADS, SIZE, WIDTH)
        x, y, kind = _entries(entries, sample, columns, num_keys)
        x = (x[None, :] - middle_x[:, None]) / spread_x[:, None]
        y = (y[None, :] - middle_y[:, None]) / spread_y[:, None]
        scores = tl.dot(queries, tl.trans(keys)) * scale + _added(x, y, kind[None, :], text[:, None])
        d_weights = tl.dot(d_read, tl.trans(_load(v, sample, head, columns, num_keys, HEADS, SIZE, WIDTH)))
        d_scores = tl.exp(scores - log_sum[:, None]) * (d_weights - shared[:, None])
        d_queries += tl.dot(d_scores.to(keys.dtype), keys)
        of_image = tl.where(kind[None, :] == IMAGE, d_scores, 0.0)
        d_middle_x += tl.sum(of_image * x, 1)
        d_middle_y += tl.sum(of_image * y, 1)
        d_spread_x += tl.sum(of_image * x * x, 1)
        d_spread_y += tl.sum(of_image * y * y, 1)
        d_text += tl.sum(tl.where(kind[None, :] == TEXT, d_scores, 0.0), 1)
    _store(d_q, sample, head, rows, num_queries, d_queries * scale, HEADS, SIZE, WIDTH)
    at, real = d_looks + ((sample * num_queries + rows).to(tl.int64) * HEADS + head) * 5, rows < num_queries
    tl.store(at, d_middle_x / spread_x, real)
    tl.store(at + 1, d_middle_y / spread_y, real)
    tl.store(at + 2, d_spread_x / spread_x, real)
    tl.store(at + 3, d_spread_y / spread_y, real)
    tl.store(at + 4, d_text, real)


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def backward_of_keys(
    q, k, v, looks, entries, log_sums, gradient, common, d_k, d_v, num_queries, num_keys, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dV = P^T dO and dK = dS^T Q, so everything is transposed here: keys are rows."""
    sample, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    columns = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    keys = _load(k, sample, head, columns, num_keys, HEADS, SIZE, WIDTH)
    values = _load(v, sample, head, columns, num_keys, HEADS, SIZE, WIDTH)
    key_x, key_y, kind = _entries(entries, sample, columns, num_keys)
    d_keys, d_values = tl.zeros((KEYS, WIDTH), tl.float32), tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, num_queries, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        queries = _load(q, sample, head, rows, num_queries, HEADS, SIZE, WIDTH)
        d_read = _load(gradient, sample, head, rows, num_queries, HEADS, SIZE, WIDTH)
        line = (sample * HEADS + head) * num_queries + rows
        # Of a query that does not exist no weight remains.
        log_sum = tl.load(log_sums + line, rows < num_queries, float("inf"))
        shared = tl.load(common + line, rows < num_queries, 0.0)
        middle_x, middle_y, spread_x, spread_y, text = _looks(looks, sample, head, rows, num_queries, HEADS)
        x = (key_x[:, None] - middle_x[None, :]) / spread_x[None, :]
        y = (key_y[:, None] - middle_y[None, :]) / spread_y[None, :]
        scores = tl.dot(keys, tl.trans(queries)) * scale + _added(x, y, kind[:, None], text[None, :])
        weights = tl.exp(scores - log_sum[None, :])
        d_values += tl.dot(weights.to(d_read.dtype), d_read)
        d_scores = weights * (tl.dot(values, tl.trans(d_read)) - shared[None, :])
        d_keys += tl.dot(d_scores.to(queries.dtype), queries)
    _store(d_k, sample, head, columns, num_keys, d_keys * scale, HEADS, SIZE, WIDTH)
    _store(d_v, sample, head, columns, num_keys, d_values, HEADS, SIZE, WIDTH)
