"""Soft-capped scores (Gemma 2, arXiv 2408.00118) in Triton: softcap x tanh(s / softcap) in place of scores s."""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


def score_factors(scale: float, softcap: float | None) -> tuple[float, float | None]:
    """(scale_log2, squash_scale) of the kernels: what scores, squashed if there is a softcap, are multiplied by to be
    exponents of two, and what `squash` takes; None for no softcap, which compiles to nothing."""
    if softcap is None:
        return scale * LOG2_E, None
    return softcap * LOG2_E, 2 * LOG2_E * scale / softcap


@triton.jit
def squash(scores, squash_scale):
    """tanh(scale x scores / softcap) of products of queries and keys; the interpreter has no tanh."""
    return 1.0 - 2.0 / (1.0 + tl.exp2(scores * squash_scale))
