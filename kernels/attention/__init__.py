"""Scaled dot-product attention: causal, full, banded, of packed documents, with grouped queries."""

from megagpt.kernels.attention.op import attention, choose_attention, pytorch_backend, triton_supports

__all__ = ["attention", "choose_attention", "pytorch_backend", "triton_supports"]
