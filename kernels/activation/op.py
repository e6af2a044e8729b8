"""Activations as ops with four implementations: Triton for CUDA, PyTorch for CPU, shapes only, and gradients."""

import torch
from torch import Tensor

from megagpt.kernels.activation import reference
from megagpt.kernels.activation.reference import GATED
from megagpt.kernels.backend import check_tensor, choose_backend, define_op

KERNEL = "megagpt.kernels.activation.kernel"
KINDS = ("gelu", "gelu_exact", "relu", "squared_relu", *GATED)
"""Activations of a feed-forward layer, with the names of `model.activation`."""
APPROXIMATE = {"tanh": "", "none": "_exact"}
"""{PyTorch's name of a form of GELU: suffix of our name}."""


def activation(x: Tensor, bias: Tensor | None, kind: str, backend: str = "auto") -> Tensor:
    """The activation `kind`, one of KINDS, of x + bias, in x's dtype; see the functions with the names of the kinds.

    x is [..., H] in float32, bfloat16 or float16, computed in float32; bias is [H] in x's dtype, or None. The result is
    [..., H], or [..., H/2] for gated kinds. backend: auto, triton or torch. Raises ValueError, naming the argument, for
    an unknown kind and for tensors that Triton does not support.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if kind in GATED and x.dim() and x.shape[-1] % 2:
        raise ValueError(f"x has {x.shape[-1]} columns; their number must be even: half of them are the gate")
    if choose_backend(backend, x) == "torch":
        return reference.activation(x, bias, kind)
    check_tensor("x", x)
    if x.dim() == 0:
        raise ValueError("x has no dimension; it must be [..., H]")
    if bias is not None:
        check_tensor("bias", bias, like=x, shape=x.shape[-1:])
    return _activation(x, bias, kind)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str = "tanh", backend: str = "auto") -> Tensor:
    """gelu(x + bias) (Hendrycks and Gimpel, arXiv 1606.08415); arguments as in `activation`.

    approximate: "tanh" for 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))), "none" for u (1 + erf(u / sqrt(2))) / 2.
    """
    return activation(x, bias, "gelu" + _suffix(approximate), backend)


def relu(x: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """max(x + bias, 0); arguments as in `activation`."""
    return activation(x, bias, "relu", backend)


def squared_relu(x: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """max(x + bias, 0)^2 (So et al., arXiv 2109.08668); arguments as in `activation`."""
    return activation(x, bias, "squared_relu", backend)


def swiglu(x: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """silu(gate) * up, where gate and up are the halves of x + bias (Shazeer, arXiv 2002.05202).

    x is [..., 2F] with the gate first, bias [2F]; the result is [..., F]. Arguments as in `activation`.
    """
    return activation(x, bias, "swiglu", backend)


def geglu(x: Tensor, bias: Tensor | None = None, approximate: str = "tanh", backend: str = "auto") -> Tensor:
    """gelu(gate) * up, with gate and up as in `swiglu`, and `approximate` as in `bias_gelu`."""
    return activation(x, bias, "geglu" + _suffix(approximate), backend)


def _suffix(approximate: str) -> str:
    if approximate not in APPROXIMATE:
        raise ValueError(f"approximate is {approximate!r}; it must be one of {', '.join(APPROXIMATE)}")
    return APPROXIMATE[approximate]


def _fake_forward(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2) if kind in GATED else x.new_empty(x.shape)


def _fake_backward(gradient: Tensor, x: Tensor, bias: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if bias is None else x.shape[-1])


_activation = define_op("activation", reference.activation, f"{KERNEL}:activation", _fake_forward)
_activation_backward = define_op(
    "activation_backward", reference.activation_backward, f"{KERNEL}:activation_backward", _fake_backward
)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    x, bias, ctx.kind = inputs
    if ctx.kind == "relu":  # the output also gives the slope, and the next layer saves it anyway
        x, bias = output, None if bias is None else torch.zeros_like(bias)
    ctx.save_for_backward(x, bias)


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
    x, bias = ctx.saved_tensors
    dx, dbias = _activation_backward(gradient, x, bias, ctx.kind)
    return dx, None if bias is None else dbias, None


torch.library.register_autograd("megagpt::activation", _differentiate, setup_context=_save)
