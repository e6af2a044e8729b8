"""Scale-mask-softmax in Triton, and the functions that launch it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Keys of the longest row that fits in registers. Twice as many spill: the backward pass, which holds y and dy, uses all
# 64 registers of 1024 threads at 32768, and the forward pass at 65536, or at 32768 if rows are not aligned.
FORWARD_ONE_PASS, BACKWARD_ONE_PASS = 32768, 16384
TILE = 2048  # elements per program for short rows; a program handles several rows
LONG_WARPS = 16


@triton.jit
def _load(ptr, column, visible, VECTOR: tl.constexpr):
    """Columns below `visible`, in float32, else 0. The load ends at a multiple of VECTOR, so that it is vectorized."""
    end = (visible + (VECTOR - 1)) // VECTOR * VECTOR
    values = tl.load(ptr + column, mask=column < end, other=0.0).to(tl.float32)
    return tl.where(column < visible, values, 0.0)


@triton.jit
def _mask_row(mask_ptr, row, queries, heads, batch_stride, head_stride, query_stride):
    """Pointer to the mask of a row of [batch, heads, queries, keys]."""
    matrix = row // queries
    batch, head, query = (matrix // heads).to(tl.int64), (matrix % heads).to(tl.int64), (row % queries).to(tl.int64)
    return mask_ptr + batch * batch_stride + head * head_stride + query * query_stride


@triton.jit
def _scores(x_ptr, mask_ptr, column, visible, scale, key_stride, MASKED: tl.constexpr, VECTOR: tl.constexpr):
    """scale * x, or -inf where a key is hidden."""
    scores = tl.where(column < visible, _load(x_ptr, column, visible, VECTOR) * scale, float("-inf"))
    if MASKED:
        end = (visible + (VECTOR - 1)) // VECTOR * VECTOR
        hidden = tl.load(mask_ptr + column * key_stride, mask=column < end, other=0)
        scores = tl.where(hidden != 0, float("-inf"), scores)
    return scores


@triton.jit
def _finite(peak):
    """The number to subtract from scores with maximum `peak`: not -inf, because exp(-inf - -inf) is NaN."""
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit(do_not_specialize=["rows", "queries", "units", "seen", "step", "heads"])
def softmax_forward_kernel(
    x_ptr,
    mask_ptr,
    y_ptr,
    scale,
    rows,
    queries,
    units,
    seen,
    step,
    heads,
    batch_stride,
    head_stride,
    query_stride,
    key_stride,
    MASKED: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y = e / sum(e), e = exp(z - max(z)), z = scale * x; a program handles ROWS whole rows.

    A row has units * VECTOR keys; the first query sees the first `seen`, and each next query `step` more.
    """
    keys = units * VECTOR
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    visible = tl.where(row < rows, row % queries * step + seen, 0)
    start = row.to(tl.int64) * keys
    mask_row = mask_ptr
    if MASKED:
        mask_row = _mask_row(mask_ptr, row, queries, heads, batch_stride, head_stride, query_stride)
    scores = _scores(x_ptr + start, mask_row, column, visible, scale, key_stride, MASKED, VECTOR)
    exponential = tl.exp(scores - _finite(tl.max(scores, 1))[:, None])
    total = tl.sum(exponential, 1)
    y = exponential * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
    tl.store(y_ptr + start + column, y.to(y_ptr.dtype.element_ty), mask=(row < rows) & (column < keys))


@triton.jit(do_not_specialize=["rows", "queries", "units", "seen", "step"])
def softmax_backward_kernel(
    dy_ptr,
    y_ptr,
    dx_ptr,
    scale,
    rows,
    queries,
    units,
    seen,
    step,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx = scale * y * (dy - sum(dy * y)); a program handles ROWS whole rows.

    A row has units * VECTOR keys; the first query sees the first `seen`, and each next query `step` more.
    """
    keys = units * VECTOR
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    visible = tl.where(row < rows, row % queries * step + seen, 0)
    start = row.to(tl.int64) * keys
    y = _load(y_ptr + start, column, visible, VECTOR)
    dy = _load(dy_ptr + start, column, visible, VECTOR)
    dx = scale * y * (dy - tl.sum(dy * y, 1)[:, None])
    tl.store(dx_ptr + start + column, dx.to(dx_ptr.dtype.element_ty), mask=(row < rows) & (column < keys))


@triton.jit(do_not_specialize=["queries", "units", "seen", "step", "heads"])
def softmax_forward_long_kernel(
    x_ptr,
    mask_ptr,
    y_ptr,
    scale,
    queries,
    units,
    seen,
    step,
    heads,
    batch_stride,
    head_stride,
    query_stride,
    key_stride,
    MASKED: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program, read twice: maximum and sum of exponentials, online and separately in each lane; then y."""
    keys = units * VECTOR
    row = tl.program_id(0)
    visible = row % queries * step + seen
    x_ptr += row.to(tl.int64) * keys
    y_ptr += row.to(tl.int64) * keys
    mask_row = mask_ptr
    if MASKED:
        mask_row = _mask_row(mask_ptr, row, queries, heads, batch_stride, head_stride, query_stride)
    # A lane is the 8 neighbours that a thread loads at once, so their maximum needs no exchange between threads.
    lane = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    peak = tl.full((BLOCK // 8,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK // 8,), tl.float32)
    for first in range(0, visible, BLOCK):
        scores = _scores(x_ptr, mask_row, first + lane, visible, scale, key_stride, MASKED, VECTOR)
        larger = tl.maximum(peak, tl.max(scores, 1))
        shift = _finite(larger)
        total = total * tl.exp(peak - shift) + tl.sum(tl.exp(scores - shift[:, None]), 1)
        peak = larger
    shift = _finite(tl.max(peak, 0))
    whole = tl.sum(total * tl.exp(peak - shift), 0)
    inverse = 1.0 / tl.where(whole == 0.0, 1.0, whole)
    for first in range(0, keys, BLOCK):
        scores = _scores(x_ptr, mask_row, first + lane, visible, scale, key_stride, MASKED, VECTOR)
        y = tl.exp(scores - shift) * inverse
        tl.store(y_ptr + first + lane, y.to(y_ptr.dtype.element_ty), mask=first + lane < keys)


@triton.jit(do_not_specialize=["queries", "units", "seen", "step"])
def softmax_backward_long_kernel(
    dy_ptr,
    y_ptr,
    dx_ptr,
    scale,
    queries,
    units,
    seen,
    step,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program, read twice: sum(dy * y); then dx = scale * y * (dy - sum)."""
    keys = units * VECTOR
    row = tl.program_id(0)
    visible = row % queries * step + seen
    dy_ptr += row.to(tl.int64) * keys
    y_ptr += row.to(tl.int64) * keys
    dx_ptr += row.to(tl.int64) * keys
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, visible, BLOCK):
        y = _load(y_ptr, first + lane, visible, VECTOR)
        total += y * _load(dy_ptr, first + lane, visible, VECTOR)
    whole = tl.sum(total, 0)
    for first in range(0, keys, BLOCK):
        y = _load(y_ptr, first + lane, visible, VECTOR)
        dx = scale * y * (_load(dy_ptr, first + lane, visible, VECTOR) - whole)
        tl.store(dx_ptr + first + lane, dx.to(dx_ptr.dtype.element_ty), mask=first + lane < keys)


def settings(keys: int) -> dict[str, int]:
    """Launch settings for rows in one pass: 16 elements per thread, and 32 for the longest rows."""
    block = max(128, triton.next_power_of_2(keys))
    num_warps = 32 if block > 16384 else min(16, max(4, block // 512))
    return {"ROWS": max(1, TILE // block), "BLOCK": block, "enable_fp_fusion": True, "num_warps": num_warps}


def _vector(keys: int) -> int:
    """Number of elements that a load can take at once, because they are aligned in every row."""
    return 8 if keys % 8 == 0 else 1


def _step(vector: int, x: Tensor) -> int:
    """Elements per step in two-pass kernels; fewer for single loads and float32, which need more registers."""
    return 8192 if vector == 8 and x.element_size() < 4 else 4096


def _seen(queries: int, keys: int, causal: bool) -> tuple[int, int]:
    """Number of keys that the first query sees, and how many more each next query sees."""
    return (keys - queries + 1, 1) if causal else (keys, 0)


def _mask_strides(mask: Tensor, shape: torch.Size) -> tuple[Tensor, int, tuple[int, int, int, int]]:
    """The mask viewed as [batch, heads, queries, keys]: tensor, number of heads, strides (0 where it is broadcast)."""
    if mask.dim() and mask.stride(-1) not in (0, 1):
        mask = mask.contiguous()
    mask = mask.expand(shape)
    mask = mask.flatten(0, -4) if mask.dim() > 4 else mask[(None,) * (4 - mask.dim())]
    return mask, mask.shape[1], mask.stride()


def scale_mask_softmax(x: Tensor, scale: float, mask: Tensor | None, causal: bool) -> Tensor:
    """Launch `softmax_forward_kernel`, or `softmax_forward_long_kernel` for rows of more than FORWARD_ONE_PASS keys."""
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    queries, keys = x.shape[-2:]
    rows, vector = x.numel() // keys, _vector(keys)
    memory, heads, strides = (x, 1, (0, 0, 0, 0)) if mask is None else _mask_strides(mask, x.shape)
    sizes = (queries, keys // vector, *_seen(queries, keys, causal), heads, *strides)
    options = {"MASKED": mask is not None, "VECTOR": vector}
    if keys > (FORWARD_ONE_PASS if vector == 8 else FORWARD_ONE_PASS // 2):
        softmax_forward_long_kernel[(rows,)](
            x, memory, y, scale, *sizes, **options, BLOCK=_step(vector, x), enable_fp_fusion=True, num_warps=LONG_WARPS
        )
    else:
        launch = settings(keys)
        grid = (triton.cdiv(rows, launch["ROWS"]),)
        softmax_forward_kernel[grid](x, memory, y, scale, rows, *sizes, **options, **launch)
    return y


def scale_mask_softmax_backward(gradient: Tensor, y: Tensor, scale: float, causal: bool) -> Tensor:
    """Launch `softmax_backward_kernel`, or `softmax_backward_long_kernel` beyond BACKWARD_ONE_PASS keys."""
    gradient, y = gradient.contiguous(), y.contiguous()
    dx = torch.empty_like(y)
    if y.numel() == 0:
        return dx
    queries, keys = y.shape[-2:]
    rows, vector = y.numel() // keys, _vector(keys)
    sizes = (queries, keys // vector, *_seen(queries, keys, causal))
    if keys > BACKWARD_ONE_PASS:
        softmax_backward_long_kernel[(rows,)](
            gradient,
            y,
            dx,
            scale,
            *sizes,
            VECTOR=vector,
            BLOCK=_step(vector, y),
            enable_fp_fusion=True,
            num_warps=LONG_WARPS,
        )
    else:
        launch = settings(keys)
        grid = (triton.cdiv(rows, launch["ROWS"]),)
        softmax_backward_kernel[grid](gradient, y, dx, scale, rows, *sizes, VECTOR=vector, **launch)
    return dx
