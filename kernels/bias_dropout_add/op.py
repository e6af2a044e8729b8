"""Bias, dropout and residual add with four implementations: Triton for CUDA, PyTorch for CPU, shapes, and gradients."""

import torch
from torch import Tensor

from megagpt.kernels.activation.reference import sum_rows
from megagpt.kernels.backend import check_tensor, choose_backend, define_op
from megagpt.kernels.bias_dropout_add import reference

KERNEL = "megagpt.kernels.bias_dropout_add.kernel"


def bias_dropout_add(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    probability: float,
    training: bool = True,
    backend: str = "auto",
) -> Tensor:
    """residual + dropout(x + bias): x's shape and dtype, computed in float32.

    x and residual are [..., H], bias [H] or None, all in x's dtype: float32, bfloat16 or float16. With `training`, an
    element is dropped with `probability` (at least 0 and less than 1), else divided by 1 - probability. Triton's mask
    depends on an element's row and column and on a seed from torch's generator of the device, so it is reproduced when
    the generator's state is restored; the backward pass recomputes it. It differs from the mask of torch's dropout and
    of the op's CPU implementation. backend: auto, triton or torch. Raises ValueError, naming the argument, for
    arguments that Triton does not support.
    """
    if choose_backend(backend, x) == "torch":
        return reference.bias_dropout_add(x, bias, residual, probability, training)
    check_tensor("x", x)
    if x.dim() == 0:
        raise ValueError("x has no dimension; it must be [..., H]")
    check_tensor("residual", residual, like=x, shape=x.shape)
    if bias is not None:
        check_tensor("bias", bias, like=x, shape=x.shape[-1:])
    if not 0 <= probability < 1:
        raise ValueError(f"probability is {probability}; it must be at least 0 and less than 1")
    drops = training and probability > 0
    seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=x.device) if drops else None
    return _bias_dropout_add(x, bias, residual, seed, probability)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_bias_dropout_add = define_op(
    "bias_dropout_add",
    reference.seeded,
    f"{KERNEL}:bias_dropout_add",
    lambda x, bias, residual, seed, probability: _like(x),
)
_bias_dropout_add_backward = define_op(
    "bias_dropout_add_backward",
    reference.seeded_backward,
    f"{KERNEL}:bias_dropout_add_backward",
    lambda gradient, bias, seed, probability: (_like(gradient), gradient.new_empty(0 if bias is None else bias.shape)),
)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    _, bias, _, seed, ctx.probability = inputs
    ctx.save_for_backward(bias, seed)


def _differentiate(ctx, gradient: Tensor) -> tuple:
    bias, seed = ctx.saved_tensors
    if seed is None:
        dx, dbias = gradient, None if bias is None else sum_rows(gradient)
    else:
        dx, dbias = _bias_dropout_add_backward(gradient, bias, seed, ctx.probability)
    return dx, None if bias is None else dbias, gradient, None, None


torch.library.register_autograd("megagpt::bias_dropout_add", _differentiate, setup_context=_save)
