"""Attention's forward pass in Triton: a program holds one tile of queries and iterates over the keys that it sees.

The softmax is computed online (Dao, FlashAttention-2, arXiv 2307.08691), with exponents to base two.
"""

import triton
import triton.language as tl

from megagpt.kernels.attention.ranges import keys_of_queries, visible
from megagpt.kernels.attention.softcap import squash


@triton.jit
def _attend(
    acc, total, largest, q, k_tile, v_tile, rows, start, end, lo, hi, first_key, queries, keys, window, scale_log2,
    squash_scale,
    BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, BANDED: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
    MASKED: tl.constexpr, WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """Process keys [lo, hi); returns the softmax's running state: acc [BM, D], total [BM] and largest [BM]."""
    for column in tl.range(lo, hi, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        k = k_tile.load([column, 0])  # [BN, D]
        scores = tl.dot(q, k.T)  # [BM, BN]
        if squash_scale is not None:
            scores = squash(scores, squash_scale)
        if MASKED:
            columns = (column + tl.arange(0, BLOCK_N))[None, :]
            seen = visible(
                rows[:, None], columns, columns, start[:, None], end[:, None], first_key, queries, keys, window,
                CAUSAL, BANDED, PACKED, PADDED,
            )  # fmt: skip
            scores = tl.where(seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1) * scale_log2)
        probabilities = tl.exp2(scores * scale_log2 - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(probabilities, 1)
        acc = acc * shrink[:, None]
        v = v_tile.load([column, 0])  # [BN, D]
        acc = tl.dot(probabilities.to(v.dtype), v, acc)
        largest = new_largest
    return acc, total, largest


@triton.jit(do_not_specialize=["heads", "group", "queries", "keys", "window"])
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, start_ptr, end_ptr, first_key_ptr,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    heads, group, queries, keys, window, scale_log2, squash_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, BANDED: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """out = softmax(scale q k^T) v and lse = log(sum(exp(scale q k^T))) of one tile of queries of one head.

    q, k, v: [B, S, heads, D] by strides; out: contiguous [B, Sq, H, D]; lse: float32 [B, H, Sq]; scale_log2 and
    squash_scale: see `score_factors`. A head's tiles with the most keys come first, so that the last ones to run are
    short. WARP_SPECIALIZE: one warp loads while the others compute; Triton supports this for one loop only, which then
    masks every block.
    """
    tiles = tl.cdiv(queries, BLOCK_M)
    row = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_M
    batch, head = tl.program_id(0) // tiles // heads, tl.program_id(0) // tiles % heads
    b64, h64 = batch.to(tl.int64), head.to(tl.int64)
    q_tile = tl.make_tensor_descriptor(
        q_ptr + b64 * q_batch + h64 * q_head, [queries, D], [q_row, 1], [BLOCK_M, BLOCK_D]
    )
    k_tile = tl.make_tensor_descriptor(
        k_ptr + b64 * k_batch + h64 // group * k_head, [keys, D], [k_row, 1], [BLOCK_N, BLOCK_D]
    )
    v_tile = tl.make_tensor_descriptor(
        v_ptr + b64 * v_batch + h64 // group * v_head, [keys, D], [v_row, 1], [BLOCK_N, BLOCK_D]
    )
    q = q_tile.load([row, 0])  # [BM, D]
    rows = row + tl.arange(0, BLOCK_M)

    start = tl.zeros([BLOCK_M], tl.int32)
    end = start
    if PACKED:
        start_ptr += b64 * keys
        end_ptr += b64 * keys
        start = tl.load(start_ptr + rows, rows < queries, 0)
        end = tl.load(end_ptr + rows, rows < queries, 0)
    first_key = 0
    if PADDED:
        first_key = tl.load(first_key_ptr + batch)
    lo, full_lo, full_hi, hi = keys_of_queries(
        row, start_ptr, end_ptr, first_key, queries, keys, window, BLOCK_M, BLOCK_N, CAUSAL, BANDED, PACKED
    )

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], -1e30, tl.float32)  # finite, so that a row without visible keys stays at zero
    if WARP_SPECIALIZE:
        acc, total, largest = _attend(
            acc, total, largest, q, k_tile, v_tile, rows, start, end, lo, hi, first_key, queries, keys, window,
            scale_log2, squash_scale, BLOCK_N, CAUSAL, BANDED, PACKED, PADDED, True, True,
        )  # fmt: skip
    else:
        if BANDED or PACKED or PADDED:
            acc, total, largest = _attend(
                acc, total, largest, q, k_tile, v_tile, rows, start, end, lo, tl.minimum(full_lo, hi), first_key,
                queries, keys, window, scale_log2, squash_scale, BLOCK_N, CAUSAL, BANDED, PACKED, PADDED, True, False,
            )  # fmt: skip
        acc, total, largest = _attend(
            acc, total, largest, q, k_tile, v_tile, rows, start, end, full_lo, full_hi, first_key, queries, keys,
            window, scale_log2, squash_scale, BLOCK_N, CAUSAL, BANDED, PACKED, PADDED, False, False,
        )  # fmt: skip
        acc, total, largest = _attend(
            acc, total, largest, q, k_tile, v_tile, rows, start, end, full_hi, hi, first_key, queries, keys, window,
            scale_log2, squash_scale, BLOCK_N, CAUSAL, BANDED, PACKED, PADDED, True, False,
        )  # fmt: skip

    seen = total > 0.0
    out = acc / tl.where(seen, total, 1.0)[:, None]
    lse = tl.where(seen, (largest + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    depth = tl.arange(0, BLOCK_D)
    out_rows = (b64 * queries + rows) * heads + head
    inside = (rows < queries)[:, None] & (depth < D)[None, :]
    tl.store(out_ptr + out_rows[:, None] * D + depth[None, :], out.to(out_ptr.dtype.element_ty), inside)
    tl.store(lse_ptr + (b64 * heads + head) * queries + rows, lse, rows < queries)
