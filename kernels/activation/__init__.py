"""Activations of the feed-forward layer, each in one pass over memory."""

from megagpt.kernels.activation.op import activation, bias_gelu, geglu, relu, squared_relu, swiglu

__all__ = ["activation", "bias_gelu", "geglu", "relu", "squared_relu", "swiglu"]
