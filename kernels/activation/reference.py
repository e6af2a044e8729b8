"""Activations in plain PyTorch: differentiable, and the CPU face of the ops."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """See `op.bias_gelu`."""
    return F.gelu(x + bias, approximate="tanh")


def bias_gelu_backward(gradient: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias."""
    dx = torch.ops.aten.gelu_backward(gradient, x + bias, approximate="tanh")
    return dx, sum_rows(dx)


def swiglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `op.swiglu`."""
    gate, up = (x if bias is None else x + bias).chunk(2, -1)
    return F.silu(gate) * up


def swiglu_backward(gradient: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias; the second is empty where there is no bias."""
    gate, up = (x if bias is None else x + bias).chunk(2, -1)
    dx = torch.cat([torch.ops.aten.silu_backward(gradient * up, gate), gradient * F.silu(gate)], -1)
    return dx, x.new_empty(0) if bias is None else sum_rows(dx)


def sum_rows(dx: Tensor) -> Tensor:
    """[..., H] -> [H], the sum over all dimensions but the last; always a new tensor."""
    return dx[None].sum(tuple(range(dx.dim())))
