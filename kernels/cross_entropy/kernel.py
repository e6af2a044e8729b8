"""Cross-entropy in Triton, and the functions that launch it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megagpt.kernels.cross_entropy.reference import real_columns

VECTOR = 16  # bytes of one load of a thread
NUM_WARPS = 4
LOADS = 4  # loads that a thread issues before it needs the first result


@triton.jit
def _exp(x):
    """exp(x) by exp2, which flushes denormals to 0; `tl.exp` needs three more instructions for them."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _online(x, largest, total_exp):
    """Update the running maximum and sum of exp(x - maximum), one pair per vector, with values x [LANES, WIDTH]."""
    new = tl.maximum(largest, tl.max(x, 1))
    return new, total_exp * _exp(largest - new) + tl.sum(_exp(x - new[:, None]), 1)


@triton.jit
def cross_entropy_statistics_kernel(
    logits_ptr,
    labels_ptr,
    statistics_ptr,
    rows,
    columns,
    real,
    first,
    stride,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Statistics of a row over its first `real` columns: m = max x, sum of exp(x - m), x[label - first] or 0, sum of x.

    One pass (Milakov and Gimelshein, arXiv 1805.02867). Every vector of 16 bytes has its own running sums, so that
    threads synchronise only at the end of the row.
    """
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride
    column = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    largest = tl.full((LANES,), -1.7e38, tl.float32)
    total_exp = tl.zeros((LANES,), tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    unmasked = real // (LANES * WIDTH) * (LANES * WIDTH)
    for start in range(0, unmasked, LANES * WIDTH):
        x = tl.load(logits_ptr + start + column).to(tl.float32)
        largest, total_exp = _online(x, largest, total_exp)
        total += tl.sum(x, 1)
    for start in range(unmasked, real, LANES * WIDTH):  # once or never; Triton 3.6 cannot compile an `if` here
        at = start + column
        x = tl.load(logits_ptr + at, mask=at < columns, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(at < real, x, 0.0), 1)
        largest, total_exp = _online(tl.where(at < real, x, float("-inf")), largest, total_exp)

    m = tl.max(largest, 0)
    label = tl.load(labels_ptr + row) - first
    target = tl.load(logits_ptr + label, mask=(label >= 0) & (label < real), other=0.0).to(tl.float32)
    statistics_ptr += row
    tl.store(statistics_ptr, m)
    tl.store(statistics_ptr + rows, tl.sum(total_exp * _exp(largest - m), 0))
    tl.store(statistics_ptr + 2 * rows, target)
    tl.store(statistics_ptr + 3 * rows, tl.sum(total, 0))


@triton.jit
def cross_entropy_losses_kernel(
    statistics_ptr,
    labels_ptr,
    losses_ptr,
    lse_ptr,
    parts,
    rows,
    vocab_size,
    ignore_index,
    label_smoothing,
    z_loss,
    BLOCK: tl.constexpr,
):
    """Combine the statistics of all parts of the vocabulary into log-sum-exp and loss.

    loss = lse - (1 - e) x[label] - e / V sum(x) + z lse^2, for label smoothing e over V tokens and z-loss z.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    m = tl.full((BLOCK,), -1.7e38, tl.float32)
    total_exp = tl.zeros((BLOCK,), tl.float32)
    target = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    at = statistics_ptr + row
    for _ in range(0, parts):
        largest = tl.load(at, mask=inside, other=0.0)
        new = tl.maximum(m, largest)
        part_exp = tl.load(at + rows, mask=inside, other=1.0)
        total_exp = total_exp * _exp(m - new) + part_exp * _exp(largest - new)
        m = new
        target += tl.load(at + 2 * rows, mask=inside, other=0.0)
        total += tl.load(at + 3 * rows, mask=inside, other=0.0)
        at += 4 * rows

    lse = m + tl.log(total_exp)
    smoothing = tl.where(label_smoothing > 0.0, label_smoothing / vocab_size * total, 0.0)  # total may be -inf
    loss = lse - (1.0 - label_smoothing) * target - smoothing + z_loss * lse * lse
    label = tl.load(labels_ptr + row, mask=inside, other=0)
    loss = tl.where((label >= 0) & (label < vocab_size), loss, float("nan"))
    tl.store(losses_ptr + row, tl.where(label == ignore_index, 0.0, loss), mask=inside)
    tl.store(lse_ptr + row, lse, mask=inside)


@triton.jit
def cross_entropy_backward_kernel(
    gradient_ptr,
    logits_ptr,
    labels_ptr,
    lse_ptr,
    out_ptr,
    columns,
    real,
    first,
    stride,
    out_stride,
    vocab_size,
    ignore_index,
    label_smoothing,
    z_loss,
    BLOCK: tl.constexpr,
):
    """dx = g ((1 + 2 z lse) exp(x - lse) - e / V - (1 - e) [column is the label]), 0 in padding.

    g is the gradient of the token's loss. A program handles one block of one row; `out_ptr` may equal `logits_ptr`.
    """
    blocks = tl.cdiv(columns, BLOCK)
    row = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels_ptr + row)
    read = tl.where(label != ignore_index, columns, 0)
    x = tl.load(logits_ptr + row.to(tl.int64) * stride + column, mask=column < read, other=0.0)
    lse = tl.load(lse_ptr + row)
    g = tl.load(gradient_ptr + row)
    g = tl.where((label >= 0) & (label < vocab_size), g, float("nan"))
    dx = g * (1.0 + 2.0 * z_loss * lse) * _exp(x.to(tl.float32) - lse) - g * (label_smoothing / vocab_size)
    dx -= tl.where(column == label - first, g * (1.0 - label_smoothing), 0.0)
    dx = tl.where(column < tl.minimum(read, real), dx, 0.0)
    out = out_ptr + row.to(tl.int64) * out_stride + column
    tl.store(out, dx.to(out_ptr.dtype.element_ty), mask=column < columns)


def statistics(logits: Tensor, labels: Tensor, first: int, vocab_size: int) -> Tensor:
    """Launch `cross_entropy_statistics_kernel`."""
    rows, columns = logits.shape
    out = torch.empty((4, rows), dtype=torch.float32, device=logits.device)
    real = real_columns(columns, first, vocab_size)
    width = VECTOR // logits.element_size()
    cross_entropy_statistics_kernel[(rows,)](
        logits,
        labels.contiguous(),
        out,
        rows,
        columns,
        real,
        first,
        logits.stride(0),
        LANES=LOADS * 32 * NUM_WARPS,
        WIDTH=width,
        enable_fp_fusion=True,
        num_warps=NUM_WARPS,
    )
    return out


def losses(
    statistics: Tensor, labels: Tensor, vocab_size: int, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Launch `cross_entropy_losses_kernel`."""
    parts, _, rows = statistics.shape
    out = torch.empty(rows, dtype=torch.float32, device=statistics.device)
    lse = torch.empty_like(out)
    cross_entropy_losses_kernel[(triton.cdiv(rows, 128),)](
        statistics.contiguous(),
        labels.contiguous(),
        out,
        lse,
        parts,
        rows,
        vocab_size,
        ignore_index,
        label_smoothing,
        z_loss,
        BLOCK=128,
        enable_fp_fusion=True,
        num_warps=NUM_WARPS,
    )
    return out, lse


def backward(gradient: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, *options: float) -> Tensor:
    """Launch `cross_entropy_backward_kernel` with a new tensor as output."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _backward(gradient, logits, labels, lse, out, *options)
    return out


def backward_(gradient: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, *options: float) -> None:
    """Launch `cross_entropy_backward_kernel` so that it overwrites the logits."""
    _backward(gradient, logits, labels, lse, logits, *options)


def _backward(
    gradient: Tensor,
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    out: Tensor,
    first: int,
    vocab_size: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    rows, columns = logits.shape
    block = LOADS * 32 * NUM_WARPS * VECTOR // logits.element_size()
    cross_entropy_backward_kernel[(rows * triton.cdiv(columns, block),)](
        gradient.contiguous(),
        logits,
        labels.contiguous(),
        lse.contiguous(),
        out,
        columns,
        real_columns(columns, first, vocab_size),
        first,
        logits.stride(0),
        out.stride(0),
        vocab_size,
        ignore_index,
        label_smoothing,
        z_loss,
        BLOCK=block,
        enable_fp_fusion=True,
        num_warps=NUM_WARPS,
    )
