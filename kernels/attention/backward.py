"""Attention's backward pass in Triton: one kernel for the gradients of keys and values, one for those of queries.

Both recompute the probabilities from the saved log-sum-exp: with P = exp(scale q k^T - lse) and
delta = rowsum(dout * out) - dlse,

    dv = P^T dout,   dS = P * (dout v^T - delta),   dk = scale dS^T q,   dq = scale dS k,

and with soft-capped scores softcap x t, t = tanh(scale q k^T / softcap), dS is multiplied by 1 - t^2.

No two programs write to the same place, so the result is the same in every run. This needs two more matrix products
than atomic additions to dq would.
"""

import triton
import triton.language as tl

from megagpt.kernels.attention.ranges import keys_of_queries, queries_of_keys, visible
from megagpt.kernels.attention.softcap import squash


@triton.jit(do_not_specialize=["heads", "queries"])
def attention_delta_kernel(
    out_ptr, dout_ptr, lse_ptr, dlse_ptr, lse_log2_ptr, delta_ptr, dout_batch, dout_row, dout_head,
    heads, queries, padded,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, HAS_DLSE: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dout * out) - dlse, and lse to base two, both float32 [B, H, padded]; out is [B, Sq, H, D].

    Queries from Sq to `padded`, and queries that see no key, get delta 0 and an infinite lse. Their probabilities are
    then 0, so the other kernels need no mask for them.
    """
    tiles = padded // BLOCK_M
    rows = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    batch, head = tl.program_id(0).to(tl.int64) // tiles // heads, tl.program_id(0).to(tl.int64) // tiles % heads
    depth = tl.arange(0, BLOCK_D)
    inside = (rows < queries)[:, None] & (depth < D)[None, :]
    out_rows = (batch * queries + rows) * heads + head
    dout_rows = batch * dout_batch + head * dout_head + rows.to(tl.int64) * dout_row
    out = tl.load(out_ptr + out_rows[:, None] * D + depth[None, :], inside, 0.0).to(tl.float32)
    dout = tl.load(dout_ptr + dout_rows[:, None] + depth[None, :], inside, 0.0).to(tl.float32)
    delta = tl.sum(out * dout, 1)
    at = (batch * heads + head) * queries + rows
    if HAS_DLSE:
        delta -= tl.load(dlse_ptr + at, rows < queries, 0.0)
    lse = tl.load(lse_ptr + at, rows < queries, float("-inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634)
    to = (batch * heads + head) * padded + rows
    tl.store(delta_ptr + to, delta)
    tl.store(lse_log2_ptr + to, lse)


@triton.jit(do_not_specialize=["heads", "group", "queries", "keys", "window"])
def attention_dkdv_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_log2_ptr, delta_ptr, dk_ptr, dv_ptr, start_ptr, end_ptr,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, dout_batch, dout_row, dout_head,
    heads, group, queries, padded, keys, window, scale, scale_log2, squash_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, BANDED: tl.constexpr, PACKED: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """dk and dv, contiguous [B, Sk, Hkv, D], of one tile of keys, summed over the query heads that share them.

    Scores are transposed, [BN, BM], so that the products take probabilities from registers. A single loop with a mask
    in every block leaves registers for the two sums. If registers do not suffice for both, two launches compute one sum
    each (DK, DV).
    """
    tiles = tl.cdiv(keys, BLOCK_N)
    kv_heads = heads // group
    column = tl.program_id(0) % tiles * BLOCK_N
    batch, kv_head = tl.program_id(0) // tiles // kv_heads, tl.program_id(0) // tiles % kv_heads
    b64, h64 = batch.to(tl.int64), kv_head.to(tl.int64)
    columns = column + tl.arange(0, BLOCK_N)
    k_tile = tl.make_tensor_descriptor(k_ptr + b64 * k_batch + h64 * k_head, [keys, D], [k_row, 1], [BLOCK_N, BLOCK_D])
    v_tile = tl.make_tensor_descriptor(v_ptr + b64 * v_batch + h64 * v_head, [keys, D], [v_row, 1], [BLOCK_N, BLOCK_D])
    first = h64 * group
    q_tile = tl.make_tensor_descriptor(
        q_ptr + b64 * q_batch + first * q_head, [group, queries, D], [q_head, q_row, 1], [1, BLOCK_M, BLOCK_D]
    )
    dout_tile = tl.make_tensor_descriptor(
        dout_ptr + b64 * dout_batch + first * dout_head,
        [group, queries, D], [dout_head, dout_row, 1], [1, BLOCK_M, BLOCK_D],
    )  # fmt: skip
    k = k_tile.load([column, 0])  # [BN, D]
    v = v_tile.load([column, 0])  # [BN, D]
    lse_log2_ptr += (b64 * heads + first) * padded
    delta_ptr += (b64 * heads + first) * padded
    start, end = columns, columns
    if PACKED:
        start_ptr += b64 * keys
        end_ptr += b64 * keys
        start = tl.load(start_ptr + columns, columns < keys, 0)
        end = tl.load(end_ptr + columns, columns < keys, 0)
    lo, hi = queries_of_keys(
        column, start_ptr, end_ptr, queries, keys, window, BLOCK_M, BLOCK_N, CAUSAL, BANDED, PACKED
    )

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    blocks = tl.cdiv(tl.maximum(hi - lo, 0), BLOCK_M)
    for step in tl.range(0, group * blocks, warp_specialize=WARP_SPECIALIZE):
        head = step // blocks
        row = lo + step % blocks * BLOCK_M
        rows = row + tl.arange(0, BLOCK_M)
        at = head * padded + rows
        q = q_tile.load([head, row, 0]).reshape(BLOCK_M, BLOCK_D)
        lse = tl.load(lse_log2_ptr + at)
        scores = tl.dot(k, q.T)  # [BN, BM]
        if squash_scale is not None:
            scores = squash(scores, squash_scale)
        probabilities = tl.exp2(scores * scale_log2 - lse[None, :])
        if CAUSAL or BANDED or PACKED:
            seen = visible(
                rows[None, :], columns[:, None], rows[None, :], start[:, None], end[:, None], 0, queries, keys, window,
                CAUSAL, BANDED, PACKED, False,
            )  # fmt: skip
            probabilities = tl.where(seen, probabilities, 0.0)
        dout = dout_tile.load([head, row, 0]).reshape(BLOCK_M, BLOCK_D)
        if DV:
            dv = tl.dot(probabilities.to(dout.dtype), dout, dv)
        if DK:
            delta = tl.load(delta_ptr + at)
            dscores = probabilities * (tl.dot(v, dout.T) - delta[None, :])  # [BN, BM]
            if squash_scale is not None:
                dscores *= 1.0 - scores * scores
            dk = tl.dot(dscores.to(q.dtype), q, dk)

    depth = tl.arange(0, BLOCK_D)
    to = ((b64 * keys + columns) * kv_heads + kv_head)[:, None] * D + depth[None, :]
    inside = (columns < keys)[:, None] & (depth < D)[None, :]
    if DK:
        tl.store(dk_ptr + to, (dk * scale).to(dk_ptr.dtype.element_ty), inside)
    if DV:
        tl.store(dv_ptr + to, dv.to(dv_ptr.dtype.element_ty), inside)


@triton.jit
def _add_keys(
    dq, q, dout, lse, delta, k_tile, v_tile, rows, start, end, lo, hi, queries, keys, window, scale_log2, squash_scale,
    BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, BANDED: tl.constexpr, PACKED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the contribution of keys [lo, hi) to dq [BM, D], which is not scaled yet."""
    for column in tl.range(lo, hi, BLOCK_N):
        k = k_tile.load([column, 0])  # [BN, D]
        scores = tl.dot(q, k.T)  # [BM, BN]
        if squash_scale is not None:
            scores = squash(scores, squash_scale)
        probabilities = tl.exp2(scores * scale_log2 - lse[:, None])
        if MASKED:
            columns = (column + tl.arange(0, BLOCK_N))[None, :]
            seen = visible(
                rows[:, None], columns, columns, start[:, None], end[:, None], 0, queries, keys, window,
                CAUSAL, BANDED, PACKED, False,
            )  # fmt: skip
            probabilities = tl.where(seen, probabilities, 0.0)
        v = v_tile.load([column, 0])  # [BN, D]
        dscores = probabilities * (tl.dot(dout, v.T) - delta[:, None])
        if squash_scale is not None:
            dscores *= 1.0 - scores * scores
        dq = tl.dot(dscores.to(k.dtype), k, dq)
    return dq


@triton.jit(do_not_specialize=["heads", "group", "queries", "keys", "window"])
def attention_dq_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_log2_ptr, delta_ptr, dq_ptr, start_ptr, end_ptr,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, dout_batch, dout_row, dout_head,
    heads, group, queries, padded, keys, window, scale, scale_log2, squash_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, BANDED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dq, contiguous [B, Sq, H, D], of one tile of queries."""
    tiles = tl.cdiv(queries, BLOCK_M)
    row = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_M
    batch, head = tl.program_id(0) // tiles // heads, tl.program_id(0) // tiles % heads
    b64, h64 = batch.to(tl.int64), head.to(tl.int64)
    rows = row + tl.arange(0, BLOCK_M)
    q_tile = tl.make_tensor_descriptor(
        q_ptr + b64 * q_batch + h64 * q_head, [queries, D], [q_row, 1], [BLOCK_M, BLOCK_D]
    )
    dout_tile = tl.make_tensor_descriptor(
        dout_ptr + b64 * dout_batch + h64 * dout_head, [queries, D], [dout_row, 1], [BLOCK_M, BLOCK_D]
    )
    k_tile = tl.make_tensor_descriptor(
        k_ptr + b64 * k_batch + h64 // group * k_head, [keys, D], [k_row, 1], [BLOCK_N, BLOCK_D]
    )
    v_tile = tl.make_tensor_descriptor(
        v_ptr + b64 * v_batch + h64 // group * v_head, [keys, D], [v_row, 1], [BLOCK_N, BLOCK_D]
    )
    q = q_tile.load([row, 0])
    dout = dout_tile.load([row, 0])
    at = (b64 * heads + head) * padded + rows
    lse = tl.load(lse_log2_ptr + at)
    delta = tl.load(delta_ptr + at)
    start, end = rows, rows
    if PACKED:
        start_ptr += b64 * keys
        end_ptr += b64 * keys
        start = tl.load(start_ptr + rows, rows < queries, 0)
        end = tl.load(end_ptr + rows, rows < queries, 0)
    lo, full_lo, full_hi, hi = keys_of_queries(
        row, start_ptr, end_ptr, 0, queries, keys, window, BLOCK_M, BLOCK_N, CAUSAL, BANDED, PACKED
    )

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if BANDED or PACKED:
        dq = _add_keys(
            dq, q, dout, lse, delta, k_tile, v_tile, rows, start, end, lo, tl.minimum(full_lo, hi), queries, keys,
            window, scale_log2, squash_scale, BLOCK_N, CAUSAL, BANDED, PACKED, True,
        )  # fmt: skip
    dq = _add_keys(
        dq, q, dout, lse, delta, k_tile, v_tile, rows, start, end, full_lo, full_hi, queries, keys, window,
        scale_log2, squash_scale, BLOCK_N, CAUSAL, BANDED, PACKED, False,
    )  # fmt: skip
    dq = _add_keys(
        dq, q, dout, lse, delta, k_tile, v_tile, rows, start, end, full_hi, hi, queries, keys, window, scale_log2,
        squash_scale, BLOCK_N, CAUSAL, BANDED, PACKED, True,
    )  # fmt: skip

    depth = tl.arange(0, BLOCK_D)
    to = ((b64 * queries + rows) * heads + head)[:, None] * D + depth[None, :]
    inside = (rows < queries)[:, None] & (depth < D)[None, :]
    tl.store(dq_ptr + to, (dq * scale).to(dq_ptr.dtype.element_ty), inside)
