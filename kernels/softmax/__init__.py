"""Softmax of scaled and masked scores, in one pass over memory if a row fits in registers."""

from megagpt.kernels.softmax.op import scale_mask_softmax

__all__ = ["scale_mask_softmax"]
