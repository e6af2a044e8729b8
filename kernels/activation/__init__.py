"""Activations of the feed-forward layer, each in one pass over memory."""

from megagpt.kernels.activation.op import bias_gelu, swiglu

__all__ = ["bias_gelu", "swiglu"]
