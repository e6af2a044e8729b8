"""Cross-entropy of logits, and of hidden states with the output projection fused in."""

from megagpt.kernels.cross_entropy.linear import linear_cross_entropy
from megagpt.kernels.cross_entropy.op import cross_entropy

__all__ = ["cross_entropy", "linear_cross_entropy"]
