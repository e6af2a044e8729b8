"""Bias, dropout and residual add in Triton, and the functions that launch them; tiles and groups as in `activation`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megagpt.kernels.activation.kernel import BACKWARD_ROWS, COLUMNS, FORWARD_ROWS, LAUNCH, geometry, load, store, tile

ROUNDS = tl.constexpr(7)
"""Rounds of Philox4x32: the fewest that pass all tests of BigCrush (Salmon et al., Parallel random numbers: as easy as
1, 2, 3)."""


@triton.jit
def _factors(seed, row, column_tile, columns, threshold, scale, COLUMNS: tl.constexpr):
    """`scale` where a random int32 is at least `threshold`, else 0, for the rows and columns of a tile.

    One call of Philox gives the numbers of four neighbours in a row, because one call per element would take longer
    than the memory accesses.
    """
    fours = column_tile * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
    counter = row[:, None] * tl.cdiv(columns, 4) + fours[None, :]
    a, b, c, d = tl.randint4x(seed, counter, n_rounds=ROUNDS)
    random = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    return tl.where(random.to(tl.int32, bitcast=True) >= threshold, scale, 0.0)


@triton.jit
def bias_dropout_add_forward_kernel(
    x_ptr,
    bias_ptr,
    residual_ptr,
    seed_ptr,
    y_ptr,
    rows,
    columns,
    threshold,
    scale,
    HAS_BIAS: tl.constexpr,
    DROPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y = residual + m (x + bias), where m is 0 with probability p, else 1 / (1 - p)."""
    tiles = tl.cdiv(columns, COLUMNS)
    row_tile, column_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, column, inside = tile(row_tile, column_tile, rows, columns, ROWS, COLUMNS)
    offset = row[:, None] * columns + column[None, :]
    u = load(x_ptr + offset, inside)
    if HAS_BIAS:
        u += load(bias_ptr + column, column < columns)[None, :]
    if DROPS:
        u *= _factors(tl.load(seed_ptr), row, column_tile, columns, threshold, scale, COLUMNS)
    store(y_ptr + offset, load(residual_ptr + offset, inside) + u, inside)


@triton.jit
def bias_dropout_add_backward_kernel(
    dy_ptr,
    seed_ptr,
    dx_ptr,
    partial_ptr,
    rows,
    columns,
    groups,
    threshold,
    scale,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx = m dy with the m of the forward pass; partial = sums of dx over the rows of a group."""
    tiles = tl.cdiv(columns, COLUMNS)
    group, column_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    seed = tl.load(seed_ptr)
    if HAS_BIAS:
        sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row_tile in range(group, tl.cdiv(rows, ROWS), groups):
        row, column, inside = tile(row_tile, column_tile, rows, columns, ROWS, COLUMNS)
        offset = row[:, None] * columns + column[None, :]
        m = _factors(seed, row, column_tile, columns, threshold, scale, COLUMNS)
        dx = m * load(dy_ptr + offset, inside)
        store(dx_ptr + offset, dx, inside)
        if HAS_BIAS:
            sum += dx
    if HAS_BIAS:
        column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(partial_ptr + group * columns + column, tl.sum(sum, 0), mask=column < columns)


def _chance(probability: float) -> tuple[int, float]:
    """`threshold` and `scale` of `_factors`."""
    return round(probability * 2**32) - 2**31, 1.0 / (1.0 - probability)


def bias_dropout_add(
    x: Tensor, bias: Tensor | None, residual: Tensor, seed: Tensor | None, probability: float
) -> Tensor:
    """Launch `bias_dropout_add_forward_kernel`; without a seed nothing is dropped."""
    x, residual, columns = x.contiguous(), residual.contiguous(), x.shape[-1]
    y = torch.empty_like(x)
    rows, programs, _ = geometry(x, columns)
    bias_dropout_add_forward_kernel[(programs,)](
        x,
        bias,
        residual,
        seed,
        y,
        rows,
        columns,
        *_chance(probability),
        HAS_BIAS=bias is not None,
        DROPS=seed is not None,
        ROWS=FORWARD_ROWS,
        COLUMNS=COLUMNS,
        **LAUNCH,
    )
    return y


def bias_dropout_add_backward(
    gradient: Tensor, bias: Tensor | None, seed: Tensor, probability: float
) -> tuple[Tensor, Tensor]:
    """Launch `bias_dropout_add_backward_kernel`."""
    gradient, columns = gradient.contiguous(), gradient.shape[-1]
    rows, _, groups = geometry(gradient, columns)
    dx = torch.empty_like(gradient)
    partial = torch.empty(groups, 0 if bias is None else columns, dtype=torch.float32, device=gradient.device)
    bias_dropout_add_backward_kernel[(groups * triton.cdiv(columns, COLUMNS),)](
        gradient,
        seed,
        dx,
        partial,
        rows,
        columns,
        groups,
        *_chance(probability),
        HAS_BIAS=bias is not None,
        ROWS=BACKWARD_ROWS,
        COLUMNS=COLUMNS,
        **LAUNCH,
    )
    return dx, partial.sum(0).to(gradient.dtype)
