"""Activations in plain PyTorch: differentiable, and the CPU face of the ops."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """See `op.bias_gelu`."""
    return F.gelu(x + bias, approximate="tanh")


def bias_gelu_backward(gradient: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """Gradient of x; that of the bias is its sum over all dimensions but the last."""
    return torch.ops.aten.gelu_backward(gradient, x + bias, approximate="tanh")
