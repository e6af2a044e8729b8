"""LayerNorm and RMSNorm, with the residual addition before them if wanted, in one pass over memory."""

from megagpt.kernels.norm.op import layer_norm, rms_norm

__all__ = ["layer_norm", "rms_norm"]
