"""Losses as functions of tensors, whole or sharded over tensor-parallel ranks."""

import torch.distributed as dist
from torch import Tensor

from megagpt.kernels import cross_entropy as kernels


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    tp_group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy of every token, float32 [B, S], computed in float32 whatever the logits' dtype.

    logits: [S, B, V / tp], this rank's contiguous share of the vocabulary, which are consumed: where the back end can,
    their memory becomes the gradient's, because they are the largest tensor of a training step. labels: int64 [B, S],
    all below `vocab_size`; columns from `vocab_size` on are padding, which takes no probability and no gradient.
    """
    return kernels.cross_entropy(logits, labels.t(), vocab_size, tp_group, inplace=True, backend=backend).t()
