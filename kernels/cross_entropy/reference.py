"""Cross-entropy in plain PyTorch: its local parts, which are also the CPU implementation of the ops.

A token's loss needs four numbers of its row of logits: the largest logit, the sum of exp(logit - largest), the label's
logit, and the sum of all logits. Each part of the vocabulary has such statistics, float32 [4, N]; parts are combined.
"""

import torch
from torch import Tensor

LOWEST = -1.7e38  # lower limit of a row's largest logit: half of float32's lowest, so that no difference overflows


def real_columns(columns: int, first: int, vocab_size: int) -> int:
    """Number of columns that are not padding, of `columns` columns beginning at column `first` of the vocabulary."""
    return min(max(vocab_size - first, 0), columns)


def exponentials_(scores: Tensor, labels: Tensor, first: int, vocab_size: int, want_total: bool = True) -> Tensor:
    """Statistics [4, N] of scores [N, C], float32; overwrites scores by exp(score - row's largest), and padding by 0.

    want_total: whether to compute the sum of all logits, which needs a further pass; only label smoothing uses it.
    """
    columns = scores.shape[-1]
    real = real_columns(columns, first, vocab_size)
    total = scores[:, : real if want_total else 0].sum(-1)
    scores[:, real:] = float("-inf")
    largest = scores.amax(-1, keepdim=True).clamp_(min=LOWEST)  # avoids NaN in a row of -inf
    local = (labels - first).unsqueeze(-1)
    elsewhere = (local < 0) | (local >= real)
    target = scores.gather(-1, local.clamp(0, columns - 1)).masked_fill_(elsewhere, 0.0).squeeze(-1)
    exponentials = scores.sub_(largest).exp_()
    return torch.stack((largest.squeeze(-1), exponentials.sum(-1), target, total))


def statistics(logits: Tensor, labels: Tensor, first: int, vocab_size: int) -> Tensor:
    """See `op.cross_entropy`: statistics [4, N] of logits [N, C]."""
    return exponentials_(logits.to(torch.float32, copy=True), labels, first, vocab_size)


def losses(
    statistics: Tensor, labels: Tensor, vocab_size: int, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Losses and log-sum-exp, float32 [N], from the statistics [P, 4, N] of all parts of the vocabulary."""
    largest, total_exp, target, total = statistics.unbind(1)
    shift = largest.amax(0)
    lse = shift + (total_exp * (largest - shift).exp()).sum(0).log()
    loss = lse - (1.0 - label_smoothing) * target.sum(0) + z_loss * lse * lse
    if label_smoothing:
        loss = loss - label_smoothing / vocab_size * total.sum(0)
    return _per_token(loss, labels, vocab_size, ignore_index), lse


def gradient_of_exponentials_(
    exponentials: Tensor,
    shift: Tensor,
    gradient: Tensor,
    labels: Tensor,
    lse: Tensor,
    first: int,
    vocab_size: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """Overwrites exp(logit - shift), float32 [N, C], by the gradient of the logits, given that of the losses [N]."""
    columns = exponentials.shape[-1]
    real = real_columns(columns, first, vocab_size)
    scale = _per_token(gradient, labels, vocab_size, ignore_index)
    exponentials.mul_((scale * (1.0 + 2.0 * z_loss * lse) * (shift - lse).exp()).unsqueeze(-1))
    if label_smoothing:
        exponentials[:, :real].sub_((scale * (label_smoothing / vocab_size)).unsqueeze(-1))
    local = labels - first
    at_label = ((label_smoothing - 1.0) * scale).masked_fill((local < 0) | (local >= real), 0.0)
    return exponentials.scatter_add_(-1, local.clamp(0, columns - 1).unsqueeze(-1), at_label.unsqueeze(-1))


def backward(
    gradient: Tensor,
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    first: int,
    vocab_size: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """Gradient of logits [N, C], in their dtype, given that of the losses [N] and the log-sum-exp [N] of all parts."""
    out = logits.clone(memory_format=torch.contiguous_format)
    backward_(gradient, out, labels, lse, first, vocab_size, ignore_index, label_smoothing, z_loss)
    return out


def backward_(
    gradient: Tensor,
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    first: int,
    vocab_size: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """Like `backward`, but overwrites the logits."""
    scores = logits.float()
    scores[:, real_columns(logits.shape[-1], first, vocab_size) :] = float("-inf")
    scores.sub_(lse.unsqueeze(-1)).exp_()
    gradient_of_exponentials_(
        scores,
        shift=lse,
        gradient=gradient,
        labels=labels,
        lse=lse,
        first=first,
        vocab_size=vocab_size,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    if scores is not logits:
        logits.copy_(scores)


def _per_token(values: Tensor, labels: Tensor, vocab_size: int, ignore_index: int) -> Tensor:
    """Values [N], with 0 where the label is ignored and NaN where it is outside the vocabulary."""
    wrong = (labels < 0) | (labels >= vocab_size)
    return values.masked_fill(wrong, float("nan")).masked_fill_(labels == ignore_index, 0.0)
