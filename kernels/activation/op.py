"""Activations with four faces: Triton on CUDA, PyTorch on CPU, shapes alone, and gradients."""

import torch
from torch import Tensor

from megagpt.kernels.activation import reference
from megagpt.kernels.backend import check_tensor, define, resolve

KERNEL = "megagpt.kernels.activation.kernel"


def bias_gelu(x: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """gelu(x + bias), the tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415); x's shape and dtype.

    x is [..., H], bias [H] with x's dtype: float32, bfloat16 or float16, computed in float32. backend: auto, triton or
    torch. Raises ValueError, naming the argument, for what Triton cannot take.
    """
    if resolve(backend, x) == "torch":
        return reference.bias_gelu(x, bias)
    check_tensor("x", x)
    check_tensor("bias", bias, like=x, shape=x.shape[-1:])
    return _bias_gelu(x, bias)


_bias_gelu = define("bias_gelu", reference.bias_gelu, f"{KERNEL}:bias_gelu", lambda x, bias: torch.empty_like(x))
_bias_gelu_backward = define(
    "bias_gelu_backward",
    reference.bias_gelu_backward,
    f"{KERNEL}:bias_gelu_backward",
    lambda gradient, x, bias: torch.empty_like(x),
)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    dx = _bias_gelu_backward(gradient, x, bias)
    return dx, dx.flatten(0, -2).sum(0)


torch.library.register_autograd(
    "megagpt::bias_gelu", _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)
