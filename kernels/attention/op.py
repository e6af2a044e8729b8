"""Attention through PyTorch's scaled_dot_product_attention, which picks a fused implementation on CPU and CUDA."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from megagpt.kernels.attention.reference import hidden_keys


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale * q k^T) v for every head; [B, Sq, H, D] in q's dtype.

    q is [B, Sq, H, D]; k and v are [B, Sk, Hkv, D] with H a multiple of Hkv (grouped queries). Strided views do.
    causal: a query sees the keys up to its own position; the last query stands at the last key, so Sq < Sk is a
    KV cache. window: and of those only the last `window`, itself included. mask: bool, broadcastable to
    [B, H, Sq, Sk], True hides the key, on top of causal and window. scale: 1/sqrt(D) when None. dropout: probability
    of dropping an attention probability. A query that sees no key gives zeros.
    """
    queries, keys = q.shape[1], k.shape[1]
    if window is not None and (unseen := keys - queries - window + 1) > 0:
        k, v = k[:, unseen:], v[:, unseen:]  # keys too old for every query
        mask = mask[..., unseen:] if mask is not None and mask.shape[-1] > 1 else mask
        keys -= unseen
    banded = window is not None and window < keys
    plain_causal = causal and not banded and mask is None and queries == keys
    if plain_causal or (mask is None and not banded and (not causal or queries == 1)):
        visible = None
    else:
        visible = _visible_keys(queries, keys, causal, window if banded else None, q.device)
        visible = visible if mask is None else visible & ~mask
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=visible,
        dropout_p=dropout,
        is_causal=plain_causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


@lru_cache(maxsize=8)
def _visible_keys(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """Bool [queries, keys], True where a query may see a key; kept, because every layer and step asks for the same."""
    with torch.inference_mode(False):  # a mask made while generating may be asked for again in training
        return ~hidden_keys(queries, keys, causal, window, device)
