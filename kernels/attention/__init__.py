"""Scaled dot-product attention: causal, full or banded, over packed documents, with grouped queries."""

from megagpt.kernels.attention.op import attention, choose_attention, pytorch_backend, triton_supports

__all__ = ["attention", "choose_attention", "pytorch_backend", "triton_supports"]
