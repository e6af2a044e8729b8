"""Scaled dot-product attention: causal, banded or masked, with grouped queries."""

from megagpt.kernels.attention.op import attention

__all__ = ["attention"]
