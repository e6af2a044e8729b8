"""Activations in Triton, and the functions that launch them.

A program handles tiles of a matrix [rows, columns], so that it reads a column's bias once per tile. A backward kernel
also sums its tiles over rows into one row of `partial` [groups, columns], for the gradient of the bias; the sum over
groups follows. This adds a thousandth to the memory traffic, while summing dx afterwards would read all of it again,
and the result is the same in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megagpt.kernels.activation.reference import GATED
from megagpt.kernels.backend import multiprocessors

COLUMNS = 256  # columns of a tile: with one 16-byte access per thread a warp covers a row in bfloat16
FORWARD_ROWS = 16
BACKWARD_ROWS = 8  # fewer, because each element needs more registers
LAUNCH = {"enable_fp_fusion": True, "num_warps": 4}
PROGRAMS = 8  # programs per multiprocessor, for kernels that process several tiles

# 2 sqrt(2/pi) log2(e), and times 0.044715; then 2 sqrt(2/pi), and times 3 * 0.044715
GELU_1 = tl.constexpr(2.302208198144325)
GELU_3 = tl.constexpr(0.1029432395800235)
SLOPE_0 = tl.constexpr(1.5957691216057308)
SLOPE_2 = tl.constexpr(0.21406444881780073)
SQRT_HALF = tl.constexpr(0.7071067811865476)
NORMAL_0 = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi), the normal distribution's density at 0


@triton.jit
def tile(row_tile, column_tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows [ROWS] and columns [COLUMNS] of a tile, and a mask of its elements inside the matrix."""
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    row = (row_tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # for addresses beyond 2^31
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return row, column, inside


@triton.jit
def load(pointer, inside):
    """Values in float32, 0 outside the matrix."""
    return tl.load(pointer, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, value, inside):
    """Store values, rounded to the pointer's dtype."""
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def activate(u, KIND: tl.constexpr):
    """(f(u), f'(u)) of a kind of `reference.POINTWISE`, in float32; an unused result compiles to nothing.

    gelu and silu are computed as u s(u) with a logistic function s, which avoids the cancellation of 1 + tanh.
    """
    if KIND == "relu" or KIND == "squared_relu":
        u = tl.where(u <= 0.0, 0.0, u)  # lets NaN pass
        value, slope = u, tl.where(u <= 0.0, 0.0, 1.0)
        if KIND == "squared_relu":
            value, slope = u * u, 2.0 * u
    elif KIND == "gelu_exact":
        s = 0.5 + 0.5 * tl.erf(u * SQRT_HALF)
        value, slope = u * s, s + u * NORMAL_0 * tl.exp(-0.5 * u * u)
    elif KIND == "gelu":
        s = 1.0 / (1.0 + tl.exp2(-u * (GELU_1 + GELU_3 * u * u)))
        value, slope = u * s, s * (1.0 + u * (1.0 - s) * (SLOPE_0 + SLOPE_2 * u * u))
    else:
        tl.static_assert(KIND == "silu")
        s = 1.0 / (1.0 + tl.exp(-u))
        value, slope = u * s, s * (1.0 + u * (1.0 - s))
    return value, slope


@triton.jit
def activation_forward_kernel(
    x_ptr, bias_ptr, y_ptr, rows, columns,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = f(x + bias)."""
    tiles = tl.cdiv(columns, COLUMNS)
    row, column, inside = tile(tl.program_id(0) // tiles, tl.program_id(0) % tiles, rows, columns, ROWS, COLUMNS)
    offset = row[:, None] * columns + column[None, :]
    u = load(x_ptr + offset, inside)
    if HAS_BIAS:
        u += load(bias_ptr + column, column < columns)[None, :]
    value, _ = activate(u, KIND)
    store(y_ptr + offset, value, inside)


@triton.jit
def activation_backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, rows, columns, groups,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dx = dy f'(x + bias); partial = sums of dx over the rows of a group."""
    tiles = tl.cdiv(columns, COLUMNS)
    group, column_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    if HAS_BIAS:
        bias = load(bias_ptr + column, column < columns)[None, :]
        sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row_tile in range(group, tl.cdiv(rows, ROWS), groups):
        row, column, inside = tile(row_tile, column_tile, rows, columns, ROWS, COLUMNS)
        offset = row[:, None] * columns + column[None, :]
        u = load(x_ptr + offset, inside)
        if HAS_BIAS:
            u += bias
        dy = load(dy_ptr + offset, inside)
        _, slope = activate(u, KIND)
        dx = dy * slope
        store(dx_ptr + offset, dx, inside)
        if HAS_BIAS:
            sum += dx
    if HAS_BIAS:
        tl.store(partial_ptr + group * columns + column, tl.sum(sum, 0), mask=column < columns)


@triton.jit
def gated_forward_kernel(
    x_ptr, bias_ptr, y_ptr, rows, columns,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = f(gate) up, with [gate, up] = x + bias; `columns` is the number of columns of y."""
    tiles = tl.cdiv(columns, COLUMNS)
    row, column, inside = tile(tl.program_id(0) // tiles, tl.program_id(0) % tiles, rows, columns, ROWS, COLUMNS)
    offset = row[:, None] * columns * 2 + column[None, :]
    gate, up = load(x_ptr + offset, inside), load(x_ptr + columns + offset, inside)
    if HAS_BIAS:
        gate += load(bias_ptr + column, column < columns)[None, :]
        up += load(bias_ptr + columns + column, column < columns)[None, :]
    value, _ = activate(gate, KIND)
    store(y_ptr + row[:, None] * columns + column[None, :], value * up, inside)


@triton.jit
def gated_backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, rows, columns, groups,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dgate = dy up f'(gate), dup = dy f(gate); partial = sums of both over the rows of a group."""
    tiles = tl.cdiv(columns, COLUMNS)
    group, column_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    if HAS_BIAS:
        gate_bias = load(bias_ptr + column, column < columns)[None, :]
        up_bias = load(bias_ptr + columns + column, column < columns)[None, :]
        gate_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
        up_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row_tile in range(group, tl.cdiv(rows, ROWS), groups):
        row, column, inside = tile(row_tile, column_tile, rows, columns, ROWS, COLUMNS)
        offset = row[:, None] * columns * 2 + column[None, :]
        gate, up = load(x_ptr + offset, inside), load(x_ptr + columns + offset, inside)
        if HAS_BIAS:
            gate += gate_bias
            up += up_bias
        dy = load(dy_ptr + row[:, None] * columns + column[None, :], inside)
        value, slope = activate(gate, KIND)
        dgate, dup = dy * up * slope, dy * value
        store(dx_ptr + offset, dgate, inside)
        store(dx_ptr + columns + offset, dup, inside)
        if HAS_BIAS:
            gate_sum += dgate
            up_sum += dup
    if HAS_BIAS:
        partial_ptr += group * 2 * columns + column
        tl.store(partial_ptr, tl.sum(gate_sum, 0), mask=column < columns)
        tl.store(partial_ptr + columns, tl.sum(up_sum, 0), mask=column < columns)


def geometry(x: Tensor, columns: int, forward_rows: int | None = None) -> tuple[int, int, int]:
    """Rows of x, programs of a forward kernel with `columns` output columns, and row groups of a backward kernel."""
    rows, tiles = x.numel() // max(x.shape[-1], 1), triton.cdiv(columns, COLUMNS)
    groups = PROGRAMS * multiprocessors(x.device) // max(tiles, 1)
    return (
        rows,
        triton.cdiv(rows, forward_rows or FORWARD_ROWS) * tiles,
        max(1, min(groups, triton.cdiv(rows, BACKWARD_ROWS))),
    )


def activation(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    """See `op.activation`."""
    x, gated = x.contiguous(), kind in GATED
    columns = x.shape[-1] // 2 if gated else x.shape[-1]
    y = torch.empty(*x.shape[:-1], columns, dtype=x.dtype, device=x.device)
    row_tile = FORWARD_ROWS // 2 if kind == "geglu_exact" else FORWARD_ROWS  # the error function needs registers
    rows, programs, _ = geometry(x, columns, row_tile)
    kernel = gated_forward_kernel if gated else activation_forward_kernel
    kernel[(programs,)](x, bias, y, rows, columns, **_flags(kind, bias), ROWS=row_tile, COLUMNS=COLUMNS, **LAUNCH)
    return y


def activation_backward(gradient: Tensor, x: Tensor, bias: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias; the second is empty if there is no bias."""
    gradient, x, gated = gradient.contiguous(), x.contiguous(), kind in GATED
    columns = x.shape[-1] // 2 if gated else x.shape[-1]
    rows, _, groups = geometry(x, columns)
    dx = torch.empty_like(x)
    partial = torch.empty(groups, 0 if bias is None else x.shape[-1], dtype=torch.float32, device=x.device)
    kernel = gated_backward_kernel if gated else activation_backward_kernel
    kernel[(groups * triton.cdiv(columns, COLUMNS),)](
        gradient, x, bias, dx, partial, rows, columns, groups,
        **_flags(kind, bias), ROWS=BACKWARD_ROWS, COLUMNS=COLUMNS, **LAUNCH,
    )  # fmt: skip
    return dx, partial.sum(0).to(x.dtype)


def _flags(kind: str, bias: Tensor | None) -> dict[str, str | bool]:
    return {"KIND": GATED.get(kind, kind), "HAS_BIAS": bias is not None}
