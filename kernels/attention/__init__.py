"""Scaled dot-product attention: causal, full, banded, of packed documents, with grouped queries."""

from megagpt.kernels.attention.op import attention, choose, supported

__all__ = ["attention", "choose", "supported"]
