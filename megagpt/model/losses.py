"""Losses as functions of tensors, whole or sharded over tensor-parallel ranks."""

import torch
import torch.distributed as dist
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, vocab_size: int, tp_group: dist.ProcessGroup | None = None) -> Tensor:
    """Cross-entropy of every token, float32 [B, S], computed in float32 whatever the logits' dtype.

    logits: [S, B, V / tp], this rank's contiguous share of the vocabulary. Float32 logits are overwritten: their
    memory becomes the gradient's, because they are the largest tensor of a training step. labels: int64 [B, S], all
    below `vocab_size`; columns from `vocab_size` on are padding, which takes no probability and no gradient.
    """
    return _CrossEntropy.apply(logits, labels.t(), vocab_size, tp_group).t()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup | None) -> Tensor:
        sharded = group is not None and group.size() > 1
        columns = logits.shape[-1]
        first = group.rank() * columns if sharded else 0
        scores = logits.float()
        scores[..., max(vocab_size - first, 0) :] = float("-inf")

        largest = scores.amax(-1, keepdim=True)
        if sharded:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        scores.sub_(largest)

        local = labels.unsqueeze(-1) - first
        elsewhere = (local < 0) | (local >= columns)
        local = local.clamp(0, columns - 1)
        target = scores.gather(-1, local).masked_fill_(elsewhere, 0.0)
        total = scores.exp_().sum(-1, keepdim=True)
        if sharded:
            sums = torch.stack((total, target))
            dist.all_reduce(sums, group=group)
            total, target = sums

        ctx.save_for_backward(scores.div_(total), local, elsewhere)
        ctx.dtype = logits.dtype
        return (total.log() - target).squeeze(-1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, local, elsewhere = ctx.saved_tensors
        probabilities.scatter_add_(-1, local, elsewhere.float() - 1.0)
        return probabilities.mul_(gradient.unsqueeze(-1)).to(ctx.dtype), None, None, None
