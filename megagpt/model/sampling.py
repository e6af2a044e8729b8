"""Choosing the next token from logits, as functions of tensors. Every row is independent of the others."""

import torch
from torch import Tensor


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V] with those of `seen` tokens (bool [B, V]) divided by `penalty` if positive, else multiplied.

    The repetition penalty of CTRL (arXiv 1909.05858), as transformers defines it.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits [B, V] with -inf for every token below the k-th largest; tokens equal to it stay."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits [B, V] with -inf outside the nucleus: the fewest most likely tokens that have probability p together."""
    ordered, tokens = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= p
    outside[:, 0] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter_(-1, tokens, outside), float("-inf"))


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row at which its cumulative probability passes `uniforms`; int64 [B].

    logprobs: [B, V]. uniforms: float64 [B] in [0, 1). Float64 sums, so that rounding, which differs between layouts,
    changes a choice almost never. Tokens of probability 0 are never drawn.
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
    return tokens.clamp_(max=logprobs.shape[-1] - 1)  # NaN compares with nothing; its log-probability will tell


def choose_tokens(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The next token of every row, int64 [B], and its log-probability, float32 [B].

    logits: float32 [B, V]. Temperature comes first, then top-k, then top-p; 0 and 1 turn the latter two off. The
    log-probability is that of the distribution the token was drawn from. Temperature 0 takes the most likely token,
    and its log-probability is that at temperature 1.
    """
    if temperature == 0:
        logprobs = logits.log_softmax(-1)
        tokens = logits.argmax(-1)
    else:
        if temperature != 1:
            logits = logits / temperature
        if top_k > 0:
            logits = keep_top_k(logits, top_k)
        if top_p < 1:
            logits = keep_top_p(logits, top_p)
        logprobs = logits.log_softmax(-1)
        tokens = draw(logprobs, uniforms)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)
