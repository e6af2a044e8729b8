"""Attention by PyTorch: its fused implementations, and one that computes all scores by a matrix product."""

from contextlib import nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megagpt.kernels.attention.masks import hidden_keys
from megagpt.kernels.softmax import scale_mask_softmax

FORCED = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
"""Back ends that name one of PyTorch's implementations; `sdpa` lets PyTorch choose."""


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    backend: str,
) -> Tensor:
    """Output [B, Sq, H, D] of torch's scaled_dot_product_attention; mask: bool [B or 1, H or 1, Sq, Sk], True hides.

    Raises ValueError if `backend` has no implementation for these tensors.
    """
    queries, keys = q.shape[1], k.shape[1]
    if window is not None and (unseen := keys - queries - window + 1) > 0:
        k, v = k[:, unseen:], v[:, unseen:]  # without keys that no query's window reaches
        mask = mask[..., unseen:] if mask is not None and mask.shape[-1] > 1 else mask
        keys -= unseen
    banded = window is not None and window < keys
    plain_causal = causal and not banded and mask is None and queries == keys
    if plain_causal or (mask is None and not banded and (not causal or queries == 1)):
        visible = None
    elif not causal and not banded:
        visible = ~mask
    else:
        visible = _visible_keys(queries, keys, causal, window if banded else None, q.device)
        visible = visible if mask is None else visible & ~mask
    try:
        with sdpa_kernel(FORCED[backend]) if backend in FORCED else nullcontext():
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
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        raise ValueError(
            f"backend {backend!r} has no implementation for {q.dtype} on {q.device.type} with head dimension "
            f"{q.shape[-1]}{' and a mask' if visible is not None else ''}: use 'sdpa' or 'auto'"
        ) from error
    return out.transpose(1, 2)


def unfused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """The same by two matrix products with `scale_mask_softmax` between them; all scores are in memory.

    softcap: see `op.attention`.
    """
    batch, queries, heads, _ = q.shape
    keys, groups = k.shape[1:3]
    grouped = q.unflatten(2, (groups, heads // groups))
    scores = torch.einsum("bqgrd,bkgd->bgrqk", grouped, k).reshape(batch, heads, queries, keys)
    if window is not None and window < keys:
        band = ~_visible_keys(queries, keys, False, window, q.device)
        mask = band if mask is None else band | mask
    if softcap is not None:
        scores, scale = torch.tanh(scores * (scale / softcap)), softcap
    probabilities = scale_mask_softmax(scores, scale, mask, causal)
    probabilities = F.dropout(probabilities, dropout).unflatten(1, (groups, heads // groups))
    return torch.einsum("bgrqk,bkgd->bqgrd", probabilities, v).flatten(2, 3)


@lru_cache(maxsize=8)
def _visible_keys(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """Bool [queries, keys], True where a query may see a key; cached, because all layers and steps need the same."""
    with torch.inference_mode(False):  # training may use a mask that was made during generation
        return ~hidden_keys(queries, keys, causal, window, device)
