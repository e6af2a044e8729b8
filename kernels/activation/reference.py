"""Activations in plain PyTorch: differentiable, and the CPU implementation of the ops."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

POINTWISE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "gelu": (partial(F.gelu, approximate="tanh"), partial(aten.gelu_backward, approximate="tanh")),
    "gelu_exact": (F.gelu, aten.gelu_backward),
    "relu": (F.relu, lambda gradient, u: aten.threshold_backward(gradient, u, 0)),
    "squared_relu": (lambda u: F.relu(u).square(), lambda gradient, u: 2 * gradient * F.relu(u)),
    "silu": (F.silu, aten.silu_backward),
}
"""{name: (pointwise function, gradient of its input, given the gradient of its output and its input)}."""

GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_exact": "gelu_exact"}
"""{gated activation: its pointwise function}. It multiplies f(first half of the input) by the second half."""


def activation(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    """See `op.activation`."""
    u = x if bias is None else x + bias
    if kind not in GATED:
        return POINTWISE[kind][0](u)
    gate, up = u.chunk(2, -1)
    return POINTWISE[GATED[kind]][0](gate) * up


def activation_backward(gradient: Tensor, x: Tensor, bias: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias; the second is empty if there is no bias."""
    u = x if bias is None else x + bias
    if kind in GATED:
        forward, backward = POINTWISE[GATED[kind]]
        gate, up = u.chunk(2, -1)
        dx = torch.cat([backward(gradient * up, gate), gradient * forward(gate)], -1)
    else:
        dx = POINTWISE[kind][1](gradient, u)
    return dx, x.new_empty(0) if bias is None else sum_rows(dx)


def sum_rows(dx: Tensor) -> Tensor:
    """[..., H] -> [H], the sum over all dimensions but the last; always a new tensor."""
    return dx[None].sum(tuple(range(dx.dim())))
