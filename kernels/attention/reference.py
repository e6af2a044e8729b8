"""Attention as a textbook writes it: the ground truth of every faster implementation. Works in any float dtype."""

import torch
from torch import Tensor


def hidden_keys(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """Bool [queries, keys], True where a query may not see a key.

    The last query stands at the last key, so that queries appended to a KV cache see what came before them. `window`
    is the number of keys that a query sees, itself included.
    """
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal:
        hidden |= distance < 0
    if window is not None:
        hidden |= distance >= window
    return hidden


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The same as `attention` without dropout, by materialising every score; a query that sees no key gives zeros."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden = hidden_keys(q.shape[1], k.shape[1], causal, window, q.device)
    if mask is not None:
        hidden = hidden | mask
    scores = scores.masked_fill(hidden, float("-inf"))
    probabilities = scores.softmax(-1).masked_fill(hidden, 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", probabilities, v)
