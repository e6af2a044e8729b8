"""Activations with four faces: Triton on CUDA, PyTorch on CPU, shapes alone, and gradients."""

import torch
from torch import Tensor

from megagpt.kernels.activation import reference
from megagpt.kernels.backend import check_tensor, choose_backend, define_op

KERNEL = "megagpt.kernels.activation.kernel"


def bias_gelu(x: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """gelu(x + bias), the tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415); x's shape and dtype.

    x is [..., H], bias [H] with x's dtype: float32, bfloat16 or float16, computed in float32. backend: auto, triton or
    torch. Raises ValueError, naming the argument, for what Triton cannot take.
    """
    if choose_backend(backend, x) == "torch":
        return reference.bias_gelu(x, bias)
    _check(x, bias)
    return _bias_gelu(x, bias)


def swiglu(x: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """silu(gate) * up, where gate and up are the halves of x + bias (Shazeer, arXiv 2002.05202).

    x is [..., 2F] with the gate first, bias [2F] with x's dtype or None; the result is [..., F]. dtypes, backend and
    errors are as in `bias_gelu`.
    """
    if choose_backend(backend, x) == "torch":
        return reference.swiglu(x, bias)
    _check(x, bias)
    if x.shape[-1] % 2:
        raise ValueError(f"x has {x.shape[-1]} columns; their number must be even: those of the gate, then as many")
    return _swiglu(x, bias)


def _check(x: Tensor, bias: Tensor | None) -> None:
    check_tensor("x", x)
    if x.dim() == 0:
        raise ValueError("x has no dimension; it must be [..., H]")
    if bias is not None:
        check_tensor("bias", bias, like=x, shape=x.shape[-1:])


def _fake_backward(gradient: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty(0 if bias is None else x.shape[-1])


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_bias_gelu = define_op("bias_gelu", reference.bias_gelu, f"{KERNEL}:bias_gelu", lambda x, bias: _like(x))
_bias_gelu_backward = define_op(
    "bias_gelu_backward", reference.bias_gelu_backward, f"{KERNEL}:bias_gelu_backward", _fake_backward
)
_swiglu = define_op(
    "swiglu",
    reference.swiglu,
    f"{KERNEL}:swiglu",
    lambda x, bias=None: x.new_empty(*x.shape[:-1], x.shape[-1] // 2),
)
_swiglu_backward = define_op("swiglu_backward", reference.swiglu_backward, f"{KERNEL}:swiglu_backward", _fake_backward)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_bias_gelu(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return _bias_gelu_backward(gradient, *ctx.saved_tensors)


def _differentiate_swiglu(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    x, bias = ctx.saved_tensors
    dx, dbias = _swiglu_backward(gradient, x, bias)
    return dx, None if bias is None else dbias


torch.library.register_autograd("megagpt::bias_gelu", _differentiate_bias_gelu, setup_context=_save)
torch.library.register_autograd("megagpt::swiglu", _differentiate_swiglu, setup_context=_save)
