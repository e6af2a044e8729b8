"""Activations in Triton, and how they are launched.

A program handles tiles of a matrix [rows, columns], so that the bias of a column is read once a tile. A backward kernel
also sums its tiles over rows, for the gradient of the bias, into one row of `partial` [groups, columns]; the sum over
groups follows. That adds a thousandth to the traffic, where summing dx afterwards would read it all once more, and
gives the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megagpt.kernels.backend import multiprocessors

COLUMNS = 256  # of a tile: one 16-byte access a thread lets a warp cover a row in bfloat16
FORWARD_ROWS = 16
BACKWARD_ROWS = 8  # fewer, because more values of an element are alive
LAUNCH = {"enable_fp_fusion": True, "num_warps": 4}
PROGRAMS = 8  # a multiprocessor, of kernels that go through several tiles

# 2 sqrt(2/pi) log2(e), and times 0.044715; then 2 sqrt(2/pi), and times 3 * 0.044715
GELU_1 = tl.constexpr(2.302208198144325)
GELU_3 = tl.constexpr(0.1029432395800235)
SLOPE_0 = tl.constexpr(1.5957691216057308)
SLOPE_2 = tl.constexpr(0.21406444881780073)


@triton.jit
def tile(row_tile, column_tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows [ROWS] and columns [COLUMNS] of a tile, and which of its elements exist."""
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    row = (row_tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # for addresses beyond 2^31
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return row, column, inside


@triton.jit
def load(pointer, inside):
    """Values in float32, 0 outside."""
    return tl.load(pointer, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, value, inside):
    """Round to what is kept there."""
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_gate(u):
    """gelu(u) / u = (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))) / 2 as a logistic function, which does not cancel."""
    return 1.0 / (1.0 + tl.exp2(-u * (GELU_1 + GELU_3 * u * u)))


@triton.jit
def bias_gelu_forward_kernel(x_ptr, bias_ptr, y_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y = gelu(x + bias) in its tanh form: 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3)))."""
    tiles = tl.cdiv(columns, COLUMNS)
    row, column, inside = tile(tl.program_id(0) // tiles, tl.program_id(0) % tiles, rows, columns, ROWS, COLUMNS)
    offset = row[:, None] * columns + column[None, :]
    u = load(x_ptr + offset, inside) + load(bias_ptr + column, column < columns)[None, :]
    store(y_ptr + offset, u * _gelu_gate(u), inside)


@triton.jit
def bias_gelu_backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, rows, columns, groups, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """dx = dy gelu'(x + bias); partial = sums of dx over the rows of a group."""
    tiles = tl.cdiv(columns, COLUMNS)
    group, column_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    bias = load(bias_ptr + column, column < columns)[None, :]
    sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row_tile in range(group, tl.cdiv(rows, ROWS), groups):
        row, column, inside = tile(row_tile, column_tile, rows, columns, ROWS, COLUMNS)
        offset = row[:, None] * columns + column[None, :]
        u = load(x_ptr + offset, inside) + bias
        s = _gelu_gate(u)
        dx = load(dy_ptr + offset, inside) * s * (1.0 + u * (1.0 - s) * (SLOPE_0 + SLOPE_2 * u * u))
        store(dx_ptr + offset, dx, inside)
        sum += dx
    tl.store(partial_ptr + group * columns + column, tl.sum(sum, 0), mask=column < columns)


@triton.jit
def swiglu_forward_kernel(
    x_ptr, bias_ptr, y_ptr, rows, columns, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """y = gate / (1 + exp(-gate)) * up, with [gate, up] = x + bias and `columns` those of y."""
    tiles = tl.cdiv(columns, COLUMNS)
    row, column, inside = tile(tl.program_id(0) // tiles, tl.program_id(0) % tiles, rows, columns, ROWS, COLUMNS)
    offset = row[:, None] * columns * 2 + column[None, :]
    gate, up = load(x_ptr + offset, inside), load(x_ptr + columns + offset, inside)
    if HAS_BIAS:
        gate += load(bias_ptr + column, column < columns)[None, :]
        up += load(bias_ptr + columns + column, column < columns)[None, :]
    store(y_ptr + row[:, None] * columns + column[None, :], gate / (1.0 + tl.exp(-gate)) * up, inside)


@triton.jit
def swiglu_backward_kernel(
    dy_ptr,
    x_ptr,
    bias_ptr,
    dx_ptr,
    partial_ptr,
    rows,
    columns,
    groups,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dgate = dy up s (1 + gate (1 - s)) with s = 1 / (1 + exp(-gate)), dup = dy gate s; partial = sums of both."""
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
        s = 1.0 / (1.0 + tl.exp(-gate))
        dgate, dup = dy * up * s * (1.0 + gate * (1.0 - s)), dy * gate * s
        store(dx_ptr + offset, dgate, inside)
        store(dx_ptr + columns + offset, dup, inside)
        if HAS_BIAS:
            gate_sum += dgate
            up_sum += dup
    if HAS_BIAS:
        partial_ptr += group * 2 * columns + column
        tl.store(partial_ptr, tl.sum(gate_sum, 0), mask=column < columns)
        tl.store(partial_ptr + columns, tl.sum(up_sum, 0), mask=column < columns)


def geometry(x: Tensor, columns: int) -> tuple[int, int, int]:
    """Rows of x, programs of a forward kernel that gives `columns` columns, and groups of rows of a backward kernel."""
    rows, tiles = x.numel() // max(x.shape[-1], 1), triton.cdiv(columns, COLUMNS)
    groups = PROGRAMS * multiprocessors(x.device) // max(tiles, 1)
    return rows, triton.cdiv(rows, FORWARD_ROWS) * tiles, max(1, min(groups, triton.cdiv(rows, BACKWARD_ROWS)))


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Launch `bias_gelu_forward_kernel`."""
    x, columns = x.contiguous(), x.shape[-1]
    y = torch.empty_like(x)
    rows, programs, _ = geometry(x, columns)
    bias_gelu_forward_kernel[(programs,)](x, bias, y, rows, columns, ROWS=FORWARD_ROWS, COLUMNS=COLUMNS, **LAUNCH)
    return y


def bias_gelu_backward(gradient: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Launch `bias_gelu_backward_kernel`."""
    gradient, x, columns = gradient.contiguous(), x.contiguous(), x.shape[-1]
    rows, _, groups = geometry(x, columns)
    dx, partial = torch.empty_like(x), torch.empty(groups, columns, dtype=torch.float32, device=x.device)
    bias_gelu_backward_kernel[(groups * triton.cdiv(columns, COLUMNS),)](
        gradient, x, bias, dx, partial, rows, columns, groups, ROWS=BACKWARD_ROWS, COLUMNS=COLUMNS, **LAUNCH
    )
    return dx, partial.sum(0).to(bias.dtype)


def swiglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Launch `swiglu_forward_kernel`."""
    x, columns = x.contiguous(), x.shape[-1] // 2
    y = torch.empty(*x.shape[:-1], columns, dtype=x.dtype, device=x.device)
    rows, programs, _ = geometry(x, columns)
    swiglu_forward_kernel[(programs,)](
        x, bias, y, rows, columns, HAS_BIAS=bias is not None, ROWS=FORWARD_ROWS, COLUMNS=COLUMNS, **LAUNCH
    )
    return y


def swiglu_backward(gradient: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Launch `swiglu_backward_kernel`."""
    gradient, x, columns = gradient.contiguous(), x.contiguous(), x.shape[-1] // 2
    rows, _, groups = geometry(x, columns)
    dx = torch.empty_like(x)
    partial = torch.empty(groups, 0 if bias is None else 2 * columns, dtype=torch.float32, device=x.device)
    swiglu_backward_kernel[(groups * triton.cdiv(columns, COLUMNS),)](
        gradient,
        x,
        bias,
        dx,
        partial,
        rows,
        columns,
        groups,
        HAS_BIAS=bias is not None,
        ROWS=BACKWARD_ROWS,
        COLUMNS=COLUMNS,
        **LAUNCH,
    )
    return dx, partial.sum(0).to(x.dtype)
