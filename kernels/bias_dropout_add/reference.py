"""Bias, dropout and residual add in plain PyTorch: differentiable, and the CPU implementation of the op."""

import torch
import torch.nn.functional as F
from torch import Tensor

from megagpt.kernels.activation.reference import sum_rows


def bias_dropout_add(x: Tensor, bias: Tensor | None, residual: Tensor, probability: float, training: bool) -> Tensor:
    """See `op.bias_dropout_add`; the mask is that of torch's dropout."""
    return residual + F.dropout(x if bias is None else x + bias, probability, training)


def seeded(x: Tensor, bias: Tensor | None, residual: Tensor, seed: Tensor | None, probability: float) -> Tensor:
    """The same with a mask that depends on `seed`; without a seed nothing is dropped."""
    u = x if bias is None else x + bias
    return residual + (u if seed is None else u * _factors(x, seed, probability))


def seeded_backward(gradient: Tensor, bias: Tensor | None, seed: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias; the second is empty if there is no bias."""
    dx = gradient * _factors(gradient, seed, probability)
    return dx, dx.new_empty(0) if bias is None else sum_rows(dx)


def _factors(x: Tensor, seed: Tensor, probability: float) -> Tensor:
    """0 with `probability`, else 1 / (1 - probability), of x's shape and dtype."""
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed.item())) >= probability
    return kept.to(x.dtype) / (1.0 - probability)
