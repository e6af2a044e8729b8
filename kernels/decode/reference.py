"""Decode attention in plain PyTorch: attention by its formula, with a single query."""

from torch import Tensor

from megagpt.kernels.attention import reference


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, first_key: Tensor | None, window: int, scale: float, softcap: float | None
) -> Tensor:
    """See `op.decode_attention`; window: 0 for none."""
    return reference.attention_forward(q, k, v, None, None, first_key, True, window, scale, softcap)[0]
