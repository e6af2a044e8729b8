"""Masks of attention: the keys that a query may not see."""

import torch
from torch import Tensor


def hidden_keys(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """Bool [queries, keys], True where a query may not see a key.

    The last query is at the position of the last key, so that queries appended to a KV cache see the keys before them.
    window: number of keys that a query sees, its own included.
    """
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal:
        hidden |= distance < 0
    if window is not None:
        hidden |= distance >= window
    return hidden


def document_bounds(cu_seqlens: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Start and end (exclusive) of every token's document, int32 [batch, length] each, as positions in its row.

    cu_seqlens: see `op.attention`. A document that continues in the next row is cut at the end of the row.
    """
    tokens = batch * length
    lengths = cu_seqlens.diff()
    valid = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == tokens) & (lengths >= 0).all()
    torch._assert_async(valid, f"cu_seqlens must begin with 0, never decrease, and end with {tokens}, the tokens in q")
    position = torch.arange(tokens, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens.long(), position, right=True).clamp(1, len(cu_seqlens) - 1)
    row = position // length * length
    start = cu_seqlens[document - 1].maximum(row) - row
    end = cu_seqlens[document].minimum(row + length) - row
    return start.int().view(batch, length), end.int().view(batch, length)


def document_mask(start: Tensor, end: Tensor) -> Tensor:
    """Bool [B, 1, S, S], True hides a key: a token sees only its own document. start, end: see `document_bounds`."""
    key = torch.arange(start.shape[1], device=start.device)
    return ((key < start[:, :, None]) | (key >= end[:, :, None])).unsqueeze(1)


def padding_mask(first_key: Tensor, keys: int) -> Tensor:
    """Bool [B, 1, 1, keys], True hides a key: the keys before `first_key`, int [B]."""
    return (torch.arange(keys, device=first_key.device) < first_key[:, None])[:, None, None, :]
