"""Attention of one new token over a long KV cache."""

from megagpt.kernels.decode.op import decode_attention

__all__ = ["decode_attention"]
