"""Soft-capped scores (Gemma 2, arXiv 2408.00118) in Triton: softcap x tanh(s / softcap) replaces scores s."""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


def score_factors(scale: float, softcap: float | None) -> tuple[float, float | None]:
    """The kernels' arguments scale_log2 and squash_scale.

    scale_log2 turns scores (after `squash`, if there is a softcap) into exponents to base two. squash_scale is the
    argument of `squash`; without a softcap it is None, and `squash` compiles to nothing.
    """
    if softcap is None:
        return scale * LOG2_E, None
    return softcap * LOG2_E, 2 * LOG2_E * scale / softcap


@triton.jit
def squash(scores, squash_scale):
    """tanh(scale x scores / softcap) of products of queries and keys, by exp2: Triton's interpreter has no tanh."""
    return 1.0 - 2.0 / (1.0 + tl.exp2(scores * squash_scale))
