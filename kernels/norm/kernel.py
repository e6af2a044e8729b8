"""LayerNorm and RMSNorm in Triton, and the functions that launch them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megagpt.kernels.backend import multiprocessors

# Columns of the longest row that one program holds in registers; with twice as many it spills. The backward pass also
# holds the sums of two gradients. Rows that are not aligned need more registers, so their limit is half of this.
FORWARD_ONE_PASS, BACKWARD_ONE_PASS = 16384, 8192
# maxnreg stops the compiler from spilling some registers in order to run more programs at once.
LONG = {"BLOCK": 4096, "enable_fp_fusion": True, "num_warps": 16, "maxnreg": 64}  # a step along a longer row
LONG_BACKWARD = {
    "ROWS": 8,
    "BLOCK": 512,
    "enable_fp_fusion": True,
    "num_warps": 8,
    "maxnreg": 255,
}  # a step down columns of longer rows
REDUCE = {"ROWS": 16, "BLOCK": 128, "enable_fp_fusion": True, "num_warps": 4}


@triton.jit
def _input(x_ptr, residual_ptr, offset, inside, RESIDUAL: tl.constexpr):
    """x, or x + residual rounded to the stored dtype, in float32."""
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        x = x.to(x_ptr.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def _weight(weight_ptr, column, columns, ZERO_CENTERED: tl.constexpr):
    """The factor of the rows, weight or 1 + weight, in float32."""
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    if ZERO_CENTERED:
        weight += 1.0
    return weight


@triton.jit
def _store_output(
    y_ptr, weight_ptr, bias_ptr, offset, column, normal, inside, columns,
    RMS: tl.constexpr, ZERO_CENTERED: tl.constexpr,
):  # fmt: skip
    """y = normal * weight + bias."""
    y = normal * _weight(weight_ptr, column, columns, ZERO_CENTERED)
    if not RMS:
        y += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "units"])
def norm_forward_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, h_ptr, mean_ptr, rstd_ptr, eps, rows, units,
    RMS: tl.constexpr, ZERO_CENTERED: tl.constexpr, RESIDUAL: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = (h - mean) rstd weight + bias, h = x + residual; a program handles ROWS rows of units * VECTOR columns."""
    columns = units * VECTOR
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < columns)
    offset = row.to(tl.int64) * columns + column
    h = _input(x_ptr, residual_ptr, offset, inside, RESIDUAL)
    if RESIDUAL:
        tl.store(h_ptr + offset, h.to(h_ptr.dtype.element_ty), mask=inside)
    if not RMS:
        mean = (tl.sum(h, 1) / columns)[:, None]
        tl.store(mean_ptr + row, mean, mask=row < rows)
        h = tl.where(column < columns, h - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(h * h, 1) / columns + eps)[:, None]
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    _store_output(y_ptr, weight_ptr, bias_ptr, offset, column, h * rstd, inside, columns, RMS, ZERO_CENTERED)


@triton.jit(do_not_specialize=["units"])
def norm_forward_long_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, h_ptr, mean_ptr, rstd_ptr, eps, units,
    RMS: tl.constexpr, ZERO_CENTERED: tl.constexpr, RESIDUAL: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row per program, read twice: mean and squared deviation, online in each lane (Welford), merged; then y."""
    columns = units * VECTOR
    start = tl.program_id(0).to(tl.int64) * columns
    lane = tl.arange(0, BLOCK)
    average, square = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + lane < columns
        h = _input(x_ptr, residual_ptr, start + first + lane, inside, RESIDUAL)
        if RMS:
            square += h * h
        else:
            difference = tl.where(inside, h - average, 0.0)
            average += difference * (1.0 / (first // BLOCK + 1))
            square += difference * (h - average)
    mean = 0.0
    if not RMS:
        count = (columns - lane + (BLOCK - 1)) // BLOCK
        mean = tl.sum(average * count, 0) / columns
        square += (average - mean) * (average - mean) * count
        tl.store(mean_ptr + tl.program_id(0), mean)
    rstd = tl.rsqrt(tl.sum(square, 0) / columns + eps)
    tl.store(rstd_ptr + tl.program_id(0), rstd)
    for first in range(0, columns, BLOCK):
        column = first + lane
        h = _input(x_ptr, residual_ptr, start + column, column < columns, RESIDUAL)
        if RESIDUAL:
            tl.store(h_ptr + start + column, h.to(h_ptr.dtype.element_ty), mask=column < columns)
        normal, inside = (h - mean) * rstd, column < columns
        _store_output(y_ptr, weight_ptr, bias_ptr, start + column, column, normal, inside, columns, RMS, ZERO_CENTERED)


@triton.jit
def _normal(h_ptr, mean, rstd, offset, inside, RMS: tl.constexpr):
    """(h - mean) rstd, the row before weight and bias."""
    h = tl.load(h_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if not RMS:
        h -= mean
    return h * rstd


@triton.jit
def _store_dx(dx_ptr, dh_ptr, offset, inside, dx, RESIDUAL: tl.constexpr):
    """dx, plus the gradient of h."""
    if RESIDUAL:
        dx += tl.load(dh_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "units"])
def norm_backward_kernel(
    dy_ptr, dh_ptr, h_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, partial_ptr, rows, units,
    RMS: tl.constexpr, ZERO_CENTERED: tl.constexpr, RESIDUAL: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx = rstd (g - mean(g) - n mean(g n)) + dh, g = weight * dy, n = (h - mean) rstd; ROWS rows at a time.

    A program handles every num_programs-th group of rows, and writes its sums of dy * n and of dy (parts of the
    gradients of weight and bias) to partial [2, programs, columns].
    """
    columns = units * VECTOR
    column = tl.arange(0, BLOCK)[None, :]
    weight = _weight(weight_ptr, column, columns, ZERO_CENTERED)
    dweight, dbias = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for group in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = (group * ROWS + tl.arange(0, ROWS))[:, None]
        inside = (row < rows) & (column < columns)
        offset = row.to(tl.int64) * columns + column
        mean = 0.0
        if not RMS:
            mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        dy = tl.load(dy_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        normal = _normal(h_ptr, mean, rstd, offset, inside, RMS)
        slope = weight * dy
        average = 0.0
        if not RMS:
            average = (tl.sum(slope, 1) / columns)[:, None]
        product = (tl.sum(slope * normal, 1) / columns)[:, None]
        dweight += dy * normal
        if not RMS:
            dbias += dy
        _store_dx(dx_ptr, dh_ptr, offset, inside, (slope - average - normal * product) * rstd, RESIDUAL)
    # One row, kept in two dimensions so that it has the same layout and access width as the others.
    out = partial_ptr + tl.program_id(0).to(tl.int64) * columns + column
    tl.store(out, tl.sum(dweight, 0)[None, :], mask=column < columns)
    if not RMS:
        out += tl.num_programs(0).to(tl.int64) * columns
        tl.store(out, tl.sum(dbias, 0)[None, :], mask=column < columns)


@triton.jit(do_not_specialize=["units"])
def norm_sums_kernel(
    dy_ptr, h_ptr, weight_ptr, mean_ptr, rstd_ptr, average_ptr, product_ptr, units,
    RMS: tl.constexpr, ZERO_CENTERED: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """mean(g) and mean(g n) as in `norm_backward_kernel`, for rows of any length; one row per program."""
    columns = units * VECTOR
    row = tl.program_id(0)
    start = row.to(tl.int64) * columns
    mean = 0.0
    if not RMS:
        mean = tl.load(mean_ptr + row)
    rstd = tl.load(rstd_ptr + row)
    slopes, products = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        slope = tl.load(dy_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
        slope *= _weight(weight_ptr, column, columns, ZERO_CENTERED)
        slopes += slope
        products += slope * _normal(h_ptr, mean, rstd, start + column, inside, RMS)
    tl.store(product_ptr + row, tl.sum(products, 0) / columns)
    if not RMS:
        tl.store(average_ptr + row, tl.sum(slopes, 0) / columns)


@triton.jit(do_not_specialize=["rows", "units"])
def norm_backward_long_kernel(
    dy_ptr, dh_ptr, h_ptr, weight_ptr, mean_ptr, rstd_ptr, average_ptr, product_ptr, dx_ptr, partial_ptr, rows,
    units,
    RMS: tl.constexpr, ZERO_CENTERED: tl.constexpr, RESIDUAL: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx and partial sums as in `norm_backward_kernel`, from the results of `norm_sums_kernel`.

    A program handles BLOCK columns of every num_programs(1)-th group of ROWS rows.
    """
    columns = units * VECTOR
    column = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    weight = _weight(weight_ptr, column, columns, ZERO_CENTERED)
    dweight, dbias = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for group in range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1)):
        row = (group * ROWS + tl.arange(0, ROWS))[:, None]
        inside = (row < rows) & (column < columns)
        offset = row.to(tl.int64) * columns + column
        dy = tl.load(dy_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        mean, average = 0.0, 0.0
        if not RMS:
            mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
            average = tl.load(average_ptr + row, mask=row < rows, other=0.0)
            dbias += dy
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        product = tl.load(product_ptr + row, mask=row < rows, other=0.0)
        normal = _normal(h_ptr, mean, rstd, offset, inside, RMS)
        dweight += dy * normal
        dx = (weight * dy - average - normal * product) * rstd
        _store_dx(dx_ptr, dh_ptr, offset, inside, dx, RESIDUAL)
    out = partial_ptr + tl.program_id(1).to(tl.int64) * columns + column
    tl.store(out, tl.sum(dweight, 0)[None, :], mask=column < columns)
    if not RMS:
        out += tl.num_programs(1).to(tl.int64) * columns
        tl.store(out, tl.sum(dbias, 0)[None, :], mask=column < columns)


@triton.jit(do_not_specialize=["programs", "columns"])
def norm_reduce_kernel(partial_ptr, dweight_ptr, dbias_ptr, programs, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of `partial` over programs, in a fixed order: dweight, and dbias if the grid has two rows."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    start = tl.program_id(1).to(tl.int64) * programs * columns
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < programs) & (column < columns)[None, :]
        total += tl.load(partial_ptr + start + row.to(tl.int64) * columns + column[None, :], mask=inside, other=0.0)
    out = tl.sum(total, 0)
    if tl.program_id(1) == 0:
        tl.store(dweight_ptr + column, out.to(dweight_ptr.dtype.element_ty), mask=column < columns)
    else:
        tl.store(dbias_ptr + column, out.to(dbias_ptr.dtype.element_ty), mask=column < columns)


def forward_settings(columns: int) -> dict[str, int]:
    """Launch settings for rows in one pass: 8 elements per thread, and up to 32 in long rows."""
    block = max(256, triton.next_power_of_2(columns))
    launch = {"ROWS": max(1, 2048 // block), "BLOCK": block}
    return launch | {
        "enable_fp_fusion": True,
        "num_warps": 16 if block > 2048 else 8,
        "maxnreg": 128 if block > 4096 else 64,
    }


def backward_settings(columns: int, element_size: int) -> dict[str, int]:
    """Launch settings for rows in one pass: 8 elements per thread, and prefetching of the next rows if registers allow.

    They do not allow it in long rows, and when elements are loaded one by one, each with its own address.
    """
    block, vector = max(256, triton.next_power_of_2(columns)), _vector(columns)
    stages = 2 if vector > 1 and block * element_size <= 2048 * vector else 1
    num_warps = 32 if block > 4096 else 16
    launch = {"ROWS": max(1, 4096 // block), "BLOCK": block, "STAGES": stages}
    return launch | {"enable_fp_fusion": True, "num_warps": num_warps, "maxnreg": 2048 // num_warps}


def _vector(columns: int) -> int:
    """Number of elements that a load can take at once, because they are aligned in every row."""
    return 8 if columns % 8 == 0 else 4 if columns % 4 == 0 else 1


def norm_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch `norm_forward_kernel`, or `norm_forward_long_kernel` for long rows."""
    x = x.contiguous()
    columns = x.shape[-1]
    rows, vector = x.numel() // columns, _vector(columns)
    h = x.new_empty(0)
    if residual is not None:
        residual, h = residual.contiguous(), torch.empty_like(x)
    y = torch.empty_like(x)
    mean = torch.empty(0 if bias is None else rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    tensors = (x, residual, weight, bias, y, h, mean, rstd)
    options = {"RMS": bias is None, "ZERO_CENTERED": zero_centered, "RESIDUAL": residual is not None, "VECTOR": vector}
    if rows == 0:
        return y, h, mean, rstd
    if columns > (FORWARD_ONE_PASS if vector > 1 else FORWARD_ONE_PASS // 2):
        norm_forward_long_kernel[(rows,)](*tensors, eps, columns // vector, **options, **LONG)
    else:
        launch = forward_settings(columns)
        grid = (triton.cdiv(rows, launch["ROWS"]),)
        norm_forward_kernel[grid](*tensors, eps, rows, columns // vector, **options, **launch)
    return y, h, mean, rstd


def norm_backward(
    gradient: Tensor,
    h_gradient: Tensor | None,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    zero_centered: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `norm_backward_kernel` (or the two kernels for long rows) and `norm_reduce_kernel`."""
    gradient, h = gradient.contiguous(), h.contiguous()
    h_gradient = None if h_gradient is None else h_gradient.contiguous()
    columns, vector, rms = h.shape[-1], _vector(h.shape[-1]), bias is None
    rows = h.numel() // columns
    long = columns > (BACKWARD_ONE_PASS if vector > 1 else BACKWARD_ONE_PASS // 2)
    launch = LONG_BACKWARD if long else backward_settings(columns, h.element_size())
    if long and vector < 4:
        launch = launch | {"ROWS": 4}
    # The number of programs that gives 512 threads per multiprocessor, but at least one.
    shares = multiprocessors(h.device) * max(1, 16 // launch["num_warps"]) // triton.cdiv(columns, launch["BLOCK"])
    programs = min(triton.cdiv(rows, launch["ROWS"]), max(1, shares))
    partial = torch.empty((1 if rms else 2, programs, columns), dtype=torch.float32, device=h.device)
    dx, dweight = torch.empty_like(h), torch.empty_like(weight)
    dbias = weight.new_empty(0) if rms else torch.empty_like(bias)
    inputs = (gradient, h_gradient, h, weight, mean, rstd)
    sizes = (rows, columns // vector)
    kind = {"RMS": rms, "ZERO_CENTERED": zero_centered, "VECTOR": vector}
    options = {**kind, "RESIDUAL": h_gradient is not None}
    if rows and long:
        average, product = torch.empty_like(mean), torch.empty_like(rstd)
        sums = (gradient, h, weight, mean, rstd, average, product)
        norm_sums_kernel[(rows,)](*sums, columns // vector, **kind, **LONG)
        grid = (triton.cdiv(columns, launch["BLOCK"]), programs)
        norm_backward_long_kernel[grid](*inputs, average, product, dx, partial, *sizes, **options, **launch)
    elif rows:
        norm_backward_kernel[(programs,)](*inputs, dx, partial, *sizes, **options, **launch)
    grid = (triton.cdiv(columns, REDUCE["BLOCK"]), len(partial))
    norm_reduce_kernel[grid](partial, dweight, dbias, programs, columns, **REDUCE)
    return dx, dweight, dbias
