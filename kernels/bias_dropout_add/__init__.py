"""Bias, dropout and residual add in one pass over memory."""

from megagpt.kernels.bias_dropout_add.op import bias_dropout_add

__all__ = ["bias_dropout_add"]
