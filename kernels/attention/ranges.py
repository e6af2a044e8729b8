"""Finds the blocks of scores that attention must compute, and which of them need a mask.

Query i of Sq is at position i + Sk - Sq among the Sk keys. It sees an interval of keys, and both ends of the interval
never decrease from one query to the next; this holds for causal, banded and packed attention and for combinations. So
the keys that a tile of queries sees are one interval [lo, hi). Inside it, all queries of the tile see the keys
[full_lo, full_hi), which need no mask. The queries that see a tile of keys are an interval too.
"""

import triton
import triton.language as tl


@triton.jit
def keys_of_queries(
    row, start_ptr, end_ptr, first_key, queries, keys, window,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, BANDED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """(lo, full_lo, full_hi, hi), in keys, of queries [row, row + BLOCK_M); all but hi are multiples of BLOCK_N.

    start_ptr, end_ptr: int32, start and end of every token's document, if PACKED. first_key: the first key that is not
    hidden from all queries.
    """
    last = tl.minimum(row + BLOCK_M, queries) - 1
    offset = keys - queries
    lo, full_lo, full_hi, hi = first_key, first_key, keys, keys
    if CAUSAL:
        full_hi = tl.minimum(full_hi, row + offset + 1)
        hi = tl.minimum(hi, last + offset + 1)
    if BANDED:
        lo = tl.maximum(lo, row + offset - window + 1)
        full_lo = tl.maximum(full_lo, last + offset - window + 1)
    if PACKED:
        lo = tl.maximum(lo, tl.load(start_ptr + row))
        full_lo = tl.maximum(full_lo, tl.load(start_ptr + last))
        full_hi = tl.minimum(full_hi, tl.load(end_ptr + row))
        hi = tl.minimum(hi, tl.load(end_ptr + last))
    lo = tl.maximum(lo, 0) // BLOCK_N * BLOCK_N
    full_lo = tl.maximum(tl.cdiv(full_lo, BLOCK_N) * BLOCK_N, lo)
    full_hi = tl.maximum(tl.maximum(full_hi, 0) // BLOCK_N * BLOCK_N, full_lo)
    return lo, full_lo, full_hi, hi


@triton.jit
def queries_of_keys(
    column, start_ptr, end_ptr, queries, keys, window,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, BANDED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """(lo, hi): the queries that see any of keys [column, column + BLOCK_N); lo is a multiple of BLOCK_M."""
    last = tl.minimum(column + BLOCK_N, keys) - 1
    offset = keys - queries
    lo, hi = 0, queries
    if CAUSAL:
        lo = tl.maximum(lo, column - offset)
    if BANDED:
        hi = tl.minimum(hi, last - offset + window)
    if PACKED:
        lo = tl.maximum(lo, tl.load(start_ptr + column))
        hi = tl.minimum(hi, tl.load(end_ptr + last))
    return lo // BLOCK_M * BLOCK_M, hi


@triton.jit
def visible(
    rows, columns, inner, start, end, first_key, queries, keys, window,
    CAUSAL: tl.constexpr, BANDED: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Whether queries `rows` see keys `columns`: bool [rows, columns] or transposed, as their shapes broadcast.

    start, end: if PACKED, the bounds of the documents of the tile's own tokens; `inner` (rows or columns) are the
    tokens of the other side, which must be inside. Results for rows and keys after the last are arbitrary, because
    these are zero and not stored.
    """
    seen = (columns <= rows + (keys - queries)) if CAUSAL else (columns + rows * 0 < keys)
    if BANDED:
        seen = seen & (columns > rows + (keys - queries - window))
    if PACKED:
        seen = seen & (inner >= start) & (inner < end)
    if PADDED:
        seen = seen & (columns >= first_key)
    return seen
