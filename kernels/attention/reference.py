"""Attention by its formula, with all scores in memory: the ground truth for the other back ends, in any float dtype."""

import torch
from torch import Tensor

from megagpt.kernels.attention.masks import document_mask, hidden_keys, padding_mask


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    first_key: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Output [B, Sq, H, D] and log-sum-exp, float32 [B, H, Sq]; for a query that sees no key they are 0 and -inf.

    start, end: results of `document_bounds`, or None. first_key: int [B], the first visible key, or None. window: 0 for
    none. softcap: scaled scores s become softcap x tanh(s / softcap) before masks and softmax.
    """
    probabilities, lse, _, _, v = _probabilities(q, k, v, start, end, first_key, causal, window, scale, softcap)
    out = torch.einsum("bhqk,bkhd->bqhd", probabilities, v)
    return out.to(q.dtype).contiguous(), lse if q.dtype == torch.float64 else lse.float()


def attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given those of the outputs of `attention_forward`; formulas in `backward.py`."""
    probabilities, _, slope, wide_k, wide_v = _probabilities(q, k, v, start, end, None, causal, window, scale, softcap)
    wide = probabilities.dtype
    delta = (dout.to(wide) * out.to(wide)).sum(-1).transpose(1, 2)
    delta = delta if dlse is None else delta - dlse
    dv = torch.einsum("bhqk,bqhd->bkhd", probabilities, dout.to(wide))
    dscores = probabilities * (torch.einsum("bqhd,bkhd->bhqk", dout.to(wide), wide_v) - delta[..., None])
    dscores = dscores if slope is None else dscores * slope
    dq = torch.einsum("bhqk,bkhd->bqhd", dscores, wide_k) * scale
    dk = torch.einsum("bhqk,bqhd->bkhd", dscores, q.to(wide)) * scale
    dk, dv = (grad.unflatten(2, (k.shape[2], -1)).sum(3) for grad in (dk, dv))
    return dq.to(q.dtype).contiguous(), dk.to(k.dtype).contiguous(), dv.to(v.dtype).contiguous()


def _probabilities(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    first_key: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Probabilities [B, H, Sq, Sk], log-sum-exp [B, H, Sq], the softcap's derivative at the scores (or None), and k and
    v repeated for every query head; all are at least float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = (part.to(wide).repeat_interleave(q.shape[2] // k.shape[2], 2) for part in (k, v))
    hidden = hidden_keys(q.shape[1], k.shape[1], causal, window or None, q.device)
    if start is not None:
        hidden = hidden | document_mask(start, end)
    if first_key is not None:
        hidden = hidden | padding_mask(first_key, k.shape[1])
    scores, slope = torch.einsum("bqhd,bkhd->bhqk", q.to(wide), k) * scale, None
    if softcap is not None:
        squashed = torch.tanh(scores / softcap)
        scores, slope = softcap * squashed, 1 - squashed.square()
    scores = scores.masked_fill(hidden, float("-inf"))
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().masked_fill(hidden, 0.0), lse, slope, k, v
