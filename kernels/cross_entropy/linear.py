"""Cross-entropy fused with the output projection, computed over slices of the vocabulary."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megagpt.kernels.backend import check_tensor, choose_backend
from megagpt.kernels.cross_entropy import reference
from megagpt.kernels.cross_entropy.op import check_options, gather, joint_losses, local_backward_, local_statistics

LOGITS = 64 * 2**20  # most elements of logits in memory at the same time
SLICES = 16  # least number of slices of the vocabulary
TILE = 128  # columns; slices consist of whole tiles of a matrix product


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_columns: int | None = None,
    reduce_hidden_gradient: bool = True,
    backend: str = "auto",
) -> Tensor:
    """`cross_entropy(hidden @ weight.T, labels, ...)`, with only a slice of the logits in memory at a time.

    hidden: [..., H]; weight: [C, H], with a `group` this rank's rows; labels: int64 [...]; other arguments as in
    `cross_entropy`. Forward and backward pass each process `chunk_columns` columns at a time, by default a sixteenth of
    C in whole tiles and at most 64 Mi logits. The backward pass recomputes the logits, so four matrix products are
    needed instead of three. The vocabulary is sliced, not the tokens, because then the weight's gradient needs no
    accumulator; it is larger than hidden's when there are fewer tokens than columns. Hidden's gradient is accumulated
    in float32.

    With a `group`, `hidden` must be the same on all ranks (the gathered input of a column-parallel layer), and its
    gradient is summed over ranks. Set `reduce_hidden_gradient` to false if the caller sums it (with sequence
    parallelism, whose gather has a reduce-scatter as backward pass). Raises ValueError, naming the argument.
    """
    check_tensor("hidden", hidden)
    if not hidden.dim():
        raise ValueError("hidden has no dimension; it must be [..., H]")
    check_tensor("weight", weight, like=hidden, shape=(*weight.shape[:1], hidden.shape[-1]))
    first, options = check_options(
        weight,
        "weight",
        columns=weight.shape[0],
        labels=labels,
        vocab_size=vocab_size,
        group=group,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(f"labels has shape {list(labels.shape)}; it must be {list(hidden.shape[:-1])}")
    if chunk_columns is not None and chunk_columns < 1:
        raise ValueError(f"chunk_columns is {chunk_columns}; it must be at least 1")
    rows = hidden.reshape(-1, hidden.shape[-1])
    chunk = chunk_columns or _chunk_columns(rows.shape[0], weight.shape[0])
    slices = [(start, min(start + chunk, weight.shape[0])) for start in range(0, weight.shape[0], chunk)]
    torch_only = choose_backend(backend, hidden) == "torch"
    losses = _Linear.apply(
        rows, weight, labels.reshape(-1), first, group, slices, reduce_hidden_gradient, torch_only, options
    )
    return losses.view(labels.shape)


def _chunk_columns(tokens: int, columns: int) -> int:
    share = min(-(-columns // SLICES), LOGITS // max(tokens, 1))
    return max(-(-share // TILE), 1) * TILE


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, first, group, slices, reduce, torch_only, options) -> Tensor:
        vocab_size, _, label_smoothing, _ = options
        parts = hidden.new_empty((len(slices), 4, hidden.shape[0]), dtype=torch.float32)
        for part, (start, stop) in zip(parts, slices, strict=True):
            logits = hidden @ weight[start:stop].t()
            if torch_only:
                scores = logits.float()
                part.copy_(reference.exponentials_(scores, labels, first + start, vocab_size, label_smoothing > 0.0))
                del scores
            else:
                part.copy_(local_statistics(logits, labels, first + start, vocab_size))
            del logits
        joint = reference.losses if torch_only else joint_losses
        losses, lse = joint(gather(parts, group), labels, *options)
        ctx.save_for_backward(hidden, weight, labels, lse)
        ctx.first, ctx.group, ctx.slices, ctx.reduce, ctx.options = first, group, slices, reduce, options
        ctx.local_backward_ = reference.backward_ if torch_only else local_backward_
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, lse = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if want_hidden else None
        weight_gradient = torch.empty_like(weight) if want_weight else None
        for start, stop in ctx.slices:
            slice_of_weight = weight[start:stop]
            logits = hidden @ slice_of_weight.t()
            ctx.local_backward_(gradient, logits, labels, lse, ctx.first + start, *ctx.options)
            if want_weight:
                torch.mm(logits.t(), hidden, out=weight_gradient[start:stop])
            if want_hidden and hidden.dtype == torch.float32:
                hidden_gradient.addmm_(logits, slice_of_weight)
            elif want_hidden:
                hidden_gradient += logits @ slice_of_weight
            del logits
        if want_hidden:
            hidden_gradient = hidden_gradient.to(hidden.dtype)
            if ctx.group is not None and ctx.reduce:
                dist.all_reduce(hidden_gradient, group=ctx.group)
        return hidden_gradient, weight_gradient, None, None, None, None, None, None, None
