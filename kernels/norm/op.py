"""LayerNorm and RMSNorm with four implementations: Triton for CUDA, PyTorch for CPU, shapes only, and gradients."""

import torch
from torch import Tensor

from megagpt.kernels.backend import check_tensor, choose_backend, define_op
from megagpt.kernels.norm import reference

KERNEL = "megagpt.kernels.norm.kernel"


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    zero_centered: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """(h - mean(h)) / sqrt(var(h) + eps) * weight + bias over the last dimension (Ba et al., arXiv 1607.06450).

    Without `residual` h is x. With it h is x + residual, and the result is (y, h), where h is the new residual stream.
    x is [..., H] in float32, bfloat16 or float16; residual and the results have the same shape and dtype; weight and
    bias are [H] in x's dtype or float32. Computed in float32, from h rounded to x's dtype. Gradients of weight and bias
    are summed over the given rows in a fixed order (zero for no rows); with sequence parallelism the caller must sum
    them over ranks. zero_centered: the factor is 1 + weight, added in float32 (Gemma, arXiv 2403.08295).

    backend: auto, triton or torch. Raises ValueError, naming the argument, for arguments that Triton does not support.
    """
    return _norm(x, residual, weight, bias, eps, zero_centered, backend)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    zero_centered: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """h / sqrt(mean(h^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467); arguments as in `layer_norm`."""
    return _norm(x, residual, weight, None, eps, zero_centered, backend)


def _norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    zero_centered: bool,
    backend: str,
) -> Tensor | tuple[Tensor, Tensor]:
    backend = choose_backend(backend, x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {list(x.shape)}; it must be [..., H] with H of 1 or more")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {list(residual.shape)}; it must be that of x, {list(x.shape)}")
    if backend == "torch":
        y, h = reference.norm(x, residual, weight, bias, eps, zero_centered)
    else:
        _check(x, residual, weight, bias)
        y, h, _, _ = _forward(x, residual, weight, bias, float(eps), zero_centered)
    return y if residual is None else (y, h)


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None) -> None:
    check_tensor("x", x)
    if residual is not None:
        check_tensor("residual", residual, like=x)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is None:
            continue
        check_tensor(name, vector, shape=x.shape[-1:])
        if vector.dtype not in (x.dtype, torch.float32):
            raise ValueError(f"{name} has dtype {vector.dtype}; with x in {x.dtype} it must have that or float32")
        if vector.device != x.device:
            raise ValueError(f"{name} is on {vector.device}, but x is on {x.device}")


def _fake_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    h = x.new_empty(0 if residual is None else x.shape)
    mean = x.new_empty(0 if bias is None else rows, dtype=torch.float32)
    return x.new_empty(x.shape), h, mean, x.new_empty(rows, dtype=torch.float32)


def _fake_backward(gradient, h_gradient, h, weight, bias, mean, rstd, _) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return h.new_empty(h.shape), weight.new_empty(weight.shape), dbias


_forward = define_op("norm", reference.norm_forward, f"{KERNEL}:norm_forward", _fake_forward)
_backward = define_op("norm_backward", reference.norm_backward, f"{KERNEL}:norm_backward", _fake_backward)


def _setup(ctx, inputs: tuple, output: tuple) -> None:
    x, residual, weight, bias, _, ctx.zero_centered = inputs
    _, h, mean, rstd = output
    ctx.save_for_backward(x if residual is None else h, weight, bias, mean, rstd)
    ctx.residual = residual is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gradient: Tensor | None, h_gradient: Tensor | None, *_) -> tuple[Tensor | None, ...]:
    h, weight, bias, mean, rstd = ctx.saved_tensors
    if gradient is None:
        gradient = torch.zeros_like(h)
    h_gradient = h_gradient if ctx.residual else None
    dx, dweight, dbias = _backward(gradient, h_gradient, h, weight, bias, mean, rstd, ctx.zero_centered)
    return dx, dx if ctx.residual else None, dweight, None if bias is None else dbias, None, None


torch.library.register_autograd("megagpt::norm", _differentiate, setup_context=_setup)
