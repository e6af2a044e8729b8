"""Cross-entropy of logits that are whole or sharded over the vocabulary, by Triton or PyTorch."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megagpt.kernels.backend import check_tensor, choose_backend, define_op
from megagpt.kernels.cross_entropy import reference

KERNEL = "megagpt.kernels.cross_entropy.kernel"


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    inplace: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy of every token, float32 [...], computed in float32 for logits of any dtype.

    loss = lse - (1 - e) x[label] - e / V sum(x) + z lse^2, where lse is the logarithm of the sum of exp(x), e is
    `label_smoothing` over the V tokens of the vocabulary, and z is `z_loss`, a weight that keeps lse near 0 (PaLM,
    arXiv 2204.02311).

    logits: [..., C], float32, bfloat16 or float16. With a tensor-parallel `group`, the C columns are this rank's
    contiguous share in the order of ranks; all ranks must make the same call with the same labels, and all get the same
    losses. labels: int64 [...]. A label `ignore_index` has loss 0 and gradient 0; any other label outside the
    vocabulary has loss NaN and gradient NaN, because an error would need a synchronisation of the GPU. vocab_size:
    columns from there on, counted over all ranks, are padding, which has no probability and no gradient; None: no
    padding.

    inplace: the logits are overwritten, and their memory holds the gradient if their dtype is the one that the back end
    computes in (Triton: any; torch: float32); a second backward pass is refused. torch.compile plans memory itself and
    ignores this. Without it, torch keeps a float32 copy of the logits, and Triton keeps the logits. Raises ValueError,
    naming the argument. Gradients of gradients are not supported.
    """
    check_tensor("logits", logits)
    first, options = check_options(
        logits,
        "logits",
        columns=logits.shape[-1] if logits.dim() else 0,
        labels=labels,
        vocab_size=vocab_size,
        group=group,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels has shape {list(labels.shape)}; it must be {list(logits.shape[:-1])}")
    function = _Torch if choose_backend(backend, logits) == "torch" else _Triton
    inplace = inplace and not torch.compiler.is_compiling()
    rows = logits.reshape(-1, logits.shape[-1])
    return function.apply(rows, labels.reshape(-1), first, group, inplace, options).view(labels.shape)


def check_options(
    tensor: Tensor,
    name: str,
    columns: int,
    labels: Tensor,
    vocab_size: int | None,
    group: dist.ProcessGroup | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[int, tuple[int, int, float, float]]:
    """This rank's first column, and (vocab_size, ignore_index, label_smoothing, z_loss). Raises ValueError."""
    if not columns:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; there must be at least one column of the vocabulary")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels has dtype {labels.dtype}; it must be int64")
    if labels.device != tensor.device:
        raise ValueError(f"labels is on {labels.device}, but {name} is on {tensor.device}")
    padded = columns * (group.size() if group is not None else 1)
    vocab_size = padded if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= padded:
        raise ValueError(f"vocab_size is {vocab_size}; it must be from 1 to the {padded} columns of all ranks")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be from 0 to 1")
    first = columns * group.rank() if group is not None else 0
    return first, (vocab_size, ignore_index, float(label_smoothing), float(z_loss))


def gather(statistics: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Statistics [P, 4, N] of this rank's parts of the vocabulary -> [ranks x P, 4, N] of all parts. Collective."""
    if group is None or group.size() == 1:
        return statistics
    out = statistics.new_empty((group.size() * statistics.shape[0], *statistics.shape[1:]))
    dist.all_gather_into_tensor(out, statistics, group=group)
    return out


def _losses_fake(statistics, *_) -> tuple[Tensor, Tensor]:
    return statistics.new_empty(statistics.shape[2]), statistics.new_empty(statistics.shape[2])


local_statistics = define_op(
    "cross_entropy_statistics",
    reference.statistics,
    f"{KERNEL}:statistics",
    lambda logits, *_: logits.new_empty((4, logits.shape[0]), dtype=torch.float32),
)
joint_losses = define_op("cross_entropy_losses", reference.losses, f"{KERNEL}:losses", _losses_fake)
local_backward = define_op(
    "cross_entropy_backward",
    reference.backward,
    f"{KERNEL}:backward",
    lambda gradient, logits, *_: logits.new_empty(logits.shape),
)
local_backward_ = define_op(
    "cross_entropy_backward_", reference.backward_, f"{KERNEL}:backward_", lambda *_: None, mutates=("logits",)
)


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, first: int, group, inplace: bool, options: tuple) -> Tensor:
        statistics = gather(local_statistics(logits, labels, first, options[0]).unsqueeze(0), group)
        losses, lse = joint_losses(statistics, labels, *options)
        ctx.save_for_backward(logits, labels, lse)
        ctx.first, ctx.inplace, ctx.options = first, inplace, options
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, lse = ctx.saved_tensors
        if ctx.inplace:
            local_backward_(gradient, logits, labels, lse, ctx.first, *ctx.options)
            torch.autograd.graph.increment_version(logits)  # makes autograd refuse to read the logits again
            out = logits
        else:
            out = local_backward(gradient, logits, labels, lse, ctx.first, *ctx.options)
        return out, None, None, None, None, None


class _Torch(torch.autograd.Function):
    """The same with one pass of exp() instead of two, because exp() dominates the time on a CPU."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, first: int, group, inplace: bool, options: tuple) -> Tensor:
        scores = logits.to(torch.float32, copy=not inplace)
        statistics = reference.exponentials_(scores, labels, first, options[0], want_total=options[2] > 0.0)
        losses, lse = reference.losses(gather(statistics.unsqueeze(0), group), labels, *options)
        ctx.save_for_backward(scores, statistics[0], labels, lse)
        ctx.first, ctx.options, ctx.dtype = first, options, logits.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scores, largest, labels, lse = ctx.saved_tensors
        reference.gradient_of_exponentials_(scores, largest, gradient, labels, lse, ctx.first, *ctx.options)
        return scores.to(ctx.dtype), None, None, None, None, None
