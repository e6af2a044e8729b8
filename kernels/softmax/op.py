"""Scale-mask-softmax with four implementations: Triton for CUDA, PyTorch for CPU, shapes only, and gradients."""

import torch
from torch import Tensor

from megagpt.kernels.backend import check_tensor, choose_backend, define_op
from megagpt.kernels.softmax import reference

KERNEL = "megagpt.kernels.softmax.kernel"


def scale_mask_softmax(
    x: Tensor, scale: float = 1.0, mask: Tensor | None = None, causal: bool = False, backend: str = "auto"
) -> Tensor:
    """Softmax over the last dimension of scale * x; hidden entries get probability 0. Same shape and dtype as x.

    x is [..., Q, K] in float32, bfloat16 or float16, computed in float32. mask is bool, broadcastable to x's shape (it
    is not materialised), and True hides an entry. causal: query i sees keys 0 to i + K - Q, so the last query sees all
    keys, and Q <= K. A row whose entries are all hidden or -inf is zero and has no gradient.

    backend: auto, triton or torch. It replaces the fused CUDA softmax of Megatron (Narayanan et al., arXiv 2104.04473).
    Rows too long for registers are normalised online (Milakov and Gimelshein, arXiv 1805.02867). Raises ValueError,
    naming the argument, for arguments that are not supported.
    """
    _check(x, mask, causal)
    if choose_backend(backend, x) == "torch":
        return reference.scale_mask_softmax(x, scale, mask, causal)
    check_tensor("x", x)
    return _softmax(x, float(scale), mask, causal)


def _check(x: Tensor, mask: Tensor | None, causal: bool) -> None:
    if x.dim() < 2:
        raise ValueError(f"x has shape {list(x.shape)}; it must have two dimensions or more: [..., queries, keys]")
    if causal and x.shape[-2] > x.shape[-1]:
        raise ValueError(
            f"x has shape {list(x.shape)}; with causal it must have as many keys (last) as queries, or more"
        )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; it must be bool, and True hides")
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device}, but x is on {x.device}")
    sizes = zip(mask.shape[::-1], x.shape[::-1], strict=False)
    if mask.dim() > x.dim() or any(size not in (1, full) for size, full in sizes):
        raise ValueError(f"mask has shape {list(mask.shape)}; it must broadcast to that of x, {list(x.shape)}")


_softmax = define_op(
    "scale_mask_softmax",
    reference.scale_mask_softmax,
    f"{KERNEL}:scale_mask_softmax",
    lambda x, scale, mask, causal: x.new_empty(x.shape),
)
_softmax_backward = define_op(
    "scale_mask_softmax_backward",
    reference.scale_mask_softmax_backward,
    f"{KERNEL}:scale_mask_softmax_backward",
    lambda gradient, y, scale, causal: y.new_empty(y.shape),
)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.scale, ctx.causal = inputs[1], inputs[3]


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    (y,) = ctx.saved_tensors
    return _softmax_backward(gradient, y, ctx.scale, ctx.causal), None, None, None


torch.library.register_autograd("megagpt::scale_mask_softmax", _backward, setup_context=_setup)
