"""Losses as functions of tensors, which may be sharded over tensor-parallel ranks."""

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor

from megagpt.kernels.cross_entropy import linear_cross_entropy


def projected_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocab_size: int,
    tp_group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy of the logits hidden x weight^T, float32 [B, S]; only a slice of the logits is in memory at a time.

    hidden: [S, B, H], or [S / tp, B, H] with `sequence_parallel`. weight: [V / tp, H], this rank's rows. labels: int64
    [B, S]. vocab_size: rows of the weight from here on are padding.
    """
    if sequence_parallel:  # the backward pass of this gather is a reduce-scatter of the gradient
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True, group=tp_group)
    return linear_cross_entropy(
        hidden,
        weight,
        labels.t(),
        vocab_size,
        tp_group,
        reduce_hidden_gradient=not sequence_parallel,
        backend=backend,
    ).t()


def entropy(logits: Tensor, vocab_size: int, tp_group: dist.ProcessGroup) -> Tensor:
    """Entropy in nats of each row's distribution over the vocabulary, float32 [n].

    logits: float32 [n, V / tp], this rank's contiguous share; columns from `vocab_size` on are padding. Formula for
    logits x: H = log sum exp(x) - sum x exp(x) / sum exp(x).
    """
    width = logits.shape[-1]
    logits = logits[:, : max(0, min(width, vocab_size - tp_group.rank() * width))]
    largest = torch.cat((logits.detach(), logits.new_full((len(logits), 1), -torch.inf)), -1).amax(-1, keepdim=True)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=tp_group)
    shifted = logits - largest
    weights = shifted.exp()
    sums = torch.stack((weights.sum(-1), (weights * shifted).sum(-1)))
    total, weighted = reduce_from_tensor_model_parallel_region(sums, group=tp_group)
    return total.log() - weighted / total
