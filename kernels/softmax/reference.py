"""Scale-mask-softmax in plain PyTorch: differentiable, and the CPU implementation of the op."""

import torch
from torch import Tensor


def scale_mask_softmax(x: Tensor, scale: float, mask: Tensor | None, causal: bool) -> Tensor:
    """See `op.scale_mask_softmax`; float64 stays float64."""
    scores = x.to(torch.promote_types(x.dtype, torch.float32)) * scale
    if causal:
        queries, keys = x.shape[-2:]
        future = torch.ones(queries, keys, dtype=torch.bool, device=x.device).triu(keys - queries + 1)
        mask = future if mask is None else mask | future
    if mask is not None:
        scores = scores.masked_fill(mask, float("-inf"))
    if x.numel() == 0:
        return scores.to(x.dtype)
    # A row without visible keys would be 0 / 0, and its gradient too.
    nothing = scores.detach().amax(-1, keepdim=True) == float("-inf")
    return scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0).to(x.dtype)


def scale_mask_softmax_backward(gradient: Tensor, y: Tensor, scale: float, causal: bool) -> Tensor:
    """Gradient of x, given the output `y`: scale * y * (dy - sum(dy * y)); `y` already has the zeros of the mask."""
    dy, probability = gradient.float(), y.float()
    return (scale * probability * (dy - (dy * probability).sum(-1, keepdim=True))).to(y.dtype)
