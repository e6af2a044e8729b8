"""Choosing the next token from logits, as functions of tensors. Every row is independent of the others."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from megagpt.data.batch import send


def penalize(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Logits [B, V] with those of `seen` tokens (bool [B, V]) divided by `penalty` if positive, else multiplied.

    The repetition penalty of CTRL (arXiv 1909.05858), as transformers defines it. penalty: for all rows, or [B, 1].
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int | Tensor) -> Tensor:
    """Logits [B, V] with -inf for every token below the k-th largest; tokens equal to it stay.

    k: at least 1, or as many for each row, int64 [B] on the CPU.
    """
    largest = k if isinstance(k, int) else int(k.max())
    values = logits.topk(min(largest, logits.shape[-1])).values
    if isinstance(k, int):
        kth = values[:, -1:]
    else:
        kth = values.gather(-1, send(k.clamp(max=logits.shape[-1])[:, None] - 1, logits.device))
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Logits [B, V] with -inf outside the nucleus: the fewest most likely tokens that have probability p together.

    p: for all rows, or float32 [B, 1]. Of equally likely tokens, those with lower ids come first.
    """
    if not logits.is_cpu:
        ordered, tokens = logits.sort(descending=True, stable=True)
        hidden = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, tokens, _outside(ordered, p))
        return logits.masked_fill(hidden, float("-inf"))
    # On a CPU PyTorch sorts values with their places, in more time than a small model takes; NumPy sorts values alone.
    ordered = -torch.from_numpy(np.sort((-logits).numpy(), axis=-1))
    count = (~_outside(ordered, p)).sum(-1, keepdim=True)
    least = ordered.gather(-1, count - 1)
    above, equal = logits > least, logits == least
    left = count - above.sum(-1, keepdim=True)
    if (equal.sum(-1, keepdim=True) > left).any():
        equal &= equal.cumsum(-1) <= left
    return logits.masked_fill(~(above | equal), float("-inf"))


def _outside(ordered: Tensor, p: float | Tensor) -> Tensor:
    """Bool [B, V]: which of the logits, largest first, are outside the nucleus; the first never is."""
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= p
    outside[:, 0] = False
    return outside


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row at which its cumulative probability passes `uniforms`; int64 [B].

    logprobs: [B, V]. uniforms: float64 [B] in [0, 1). Float64 sums, so that rounding, which differs between layouts,
    changes a choice almost never. Tokens of probability 0 are never drawn.
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
    return tokens.clamp_(max=logprobs.shape[-1] - 1)  # NaN compares with nothing; its log-probability will tell


def choose_tokens(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
) -> tuple[Tensor, Tensor]:
    """The next token of every row, int64 [B], and its log-probability, float32 [B].

    logits: float32 [B, V]. Temperature comes first, then top-k, then top-p; 0 and 1 turn the latter two off. Each is a
    number for all rows, or one for every row. The log-probability is that of the distribution the token was drawn from.
    Temperature 0 takes the most likely token, and its log-probability is that at temperature 1.
    """
    temperature, top_k, top_p = (_same(values, len(logits)) for values in (temperature, top_k, top_p))
    drawn = [row for row, value in enumerate(temperature) if value > 0]
    if not drawn:
        logprobs, tokens = logits.log_softmax(-1), logits.argmax(-1)
        return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    if any(value not in (0, 1) for value in temperature):
        logits = logits / _column([value or 1.0 for value in temperature], logits)
    likeliest = logits.argmax(-1) if len(drawn) < len(logits) else None
    logits = _on_rows(keep_top_k, logits, [row for row in drawn if top_k[row] > 0], top_k)
    logits = _on_rows(keep_top_p, logits, [row for row in drawn if top_p[row] < 1], top_p)
    logprobs = logits.log_softmax(-1)
    tokens = draw(logprobs, uniforms)
    if likeliest is not None:
        tokens = torch.where(_column(temperature, logits).squeeze(-1) == 0, likeliest, tokens)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def _same(values: float | Sequence[float], count: int) -> Sequence[float]:
    return [values] * count if isinstance(values, int | float) else values


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """A column [B, 1] on the device and in the dtype of `like`."""
    return send(torch.tensor(values, dtype=like.dtype)[:, None], like.device)


def _on_rows(keep: Callable, logits: Tensor, rows: list[int], values: Sequence[float]) -> Tensor:
    """Logits after `keep` with each row's value, on these rows only."""
    if not rows:
        return logits
    chosen = [values[row] for row in rows]
    one = chosen[0] if len(set(chosen)) == 1 else None
    if one is None:
        one = torch.tensor(chosen) if keep is keep_top_k else _column(chosen, logits)
    if len(rows) == len(logits):
        return keep(logits, one)
    places = send(torch.tensor(rows), logits.device)
    return logits.index_copy(0, places, keep(logits[places], one))
