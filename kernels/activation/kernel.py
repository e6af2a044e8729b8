"""Activations in Triton, and how they are launched."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements a program; 16 bytes a thread and load
NUM_WARPS = 4


@triton.jit
def _tanh(x):
    """tanh(x) = 1 - 2 / (exp(2x) + 1), which neither overflows nor cancels where it matters."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def bias_gelu_forward_kernel(x_ptr, bias_ptr, y_ptr, size, columns, BLOCK: tl.constexpr):
    """y = gelu(x + bias) in its tanh form: 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3)))."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    u = x + tl.load(bias_ptr + offset % columns, mask=inside, other=0.0).to(tl.float32)
    y = 0.5 * u * (1.0 + _tanh(0.7978845608028654 * (u + 0.044715 * u * u * u)))
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def bias_gelu_backward_kernel(dy_ptr, x_ptr, bias_ptr, dx_ptr, size, columns, BLOCK: tl.constexpr):
    """dx = dy gelu'(x + bias)."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    u = x + tl.load(bias_ptr + offset % columns, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    t = _tanh(0.7978845608028654 * (u + 0.044715 * u * u * u))
    slope = 0.5 * (1.0 + t) + 0.5 * u * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * u * u)
    tl.store(dx_ptr + offset, (dy * slope).to(dx_ptr.dtype.element_ty), mask=inside)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Launch `bias_gelu_forward_kernel`."""
    x = x.contiguous()
    y = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    bias_gelu_forward_kernel[grid](x, bias, y, x.numel(), x.shape[-1], BLOCK=BLOCK, num_warps=NUM_WARPS)
    return y


def bias_gelu_backward(gradient: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """Launch `bias_gelu_backward_kernel`."""
    gradient, x = gradient.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    bias_gelu_backward_kernel[grid](gradient, x, bias, dx, x.numel(), x.shape[-1], BLOCK=BLOCK, num_warps=NUM_WARPS)
    return dx
