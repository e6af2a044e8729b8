"""LayerNorm and RMSNorm, optionally after a residual addition, in one pass over memory."""

from megagpt.kernels.norm.op import layer_norm, rms_norm

__all__ = ["layer_norm", "rms_norm"]
