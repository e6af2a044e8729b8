"""LayerNorm and RMSNorm in plain PyTorch: differentiable, and the CPU implementation. bias=None means RMSNorm."""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    """Output, and h (x or x + residual). See `op.layer_norm` and `op.rms_norm`."""
    h = x if residual is None else x + residual
    same = all(tensor is None or tensor.dtype == x.dtype for tensor in (weight, bias))
    # PyTorch needs weights in the input's dtype, and 1 + weight would lose digits in 16 bits.
    value = h if same and not zero_centered else h.to(torch.promote_types(h.dtype, torch.float32))
    weight = weight.to(value.dtype)
    weight = 1 + weight if zero_centered else weight
    if bias is None:
        y = F.rms_norm(value, x.shape[-1:], weight, eps)
    else:
        y = F.layer_norm(value, x.shape[-1:], weight, bias.to(value.dtype), eps)
    return y.to(x.dtype), h


def norm_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, zero_centered: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output y; h = x + residual, or empty; mean of each row, or empty for RMSNorm; 1 / deviation of each row.

    The last two are float32 [rows].
    """
    h = x if residual is None else x + residual
    rows = h.reshape(-1, x.shape[-1]).float()
    mean = rows.new_zeros(0) if bias is None else rows.mean(-1)
    centred = rows if bias is None else rows - mean[:, None]
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    y = centred * rstd[:, None] * (weight.float() + zero_centered)
    y = y if bias is None else y + bias.float()
    return y.to(x.dtype).view(x.shape), x.new_empty(0) if residual is None else h.contiguous(), mean, rstd


def norm_backward(
    gradient: Tensor,
    h_gradient: Tensor | None,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    zero_centered: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (equal to the residual's), weight and bias (empty for RMSNorm), given `norm_forward`'s outputs.

    With n = (h - mean) rstd and g = weight * dy: dx = rstd (g - mean(g) - n mean(g n)) + dh; RMSNorm has no mean(g).
    """
    columns = h.shape[-1]
    dy, rows = gradient.reshape(-1, columns).float(), h.reshape(-1, columns).float()
    normal = (rows if bias is None else rows - mean[:, None]) * rstd[:, None]
    slope = (weight.float() + zero_centered) * dy
    dx = slope - normal * (slope * normal).mean(-1, keepdim=True)
    if bias is not None:
        dx = dx - slope.mean(-1, keepdim=True)
    dx = (dx * rstd[:, None]).view(h.shape)
    dx = dx if h_gradient is None else dx + h_gradient.float()
    dbias = weight.new_empty(0) if bias is None else dy.sum(0).to(bias.dtype)
    return dx.to(h.dtype), (dy * normal).sum(0).to(weight.dtype), dbias
