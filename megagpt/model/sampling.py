"""Functions of tensors that choose the next token from logits. Every row is independent of the others."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from megagpt.data.batch import send


def penalize(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Logits [B, V] with a repetition penalty on the `seen` tokens (bool [B, V]).

    A positive logit is divided by `penalty`, a negative one multiplied: the penalty of CTRL (arXiv 1909.05858) as
    transformers defines it. penalty: one number for all rows, or [B, 1].
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int | Tensor) -> Tensor:
    """Logits [B, V] with -inf for every token below the k-th largest; tokens equal to the k-th largest stay.

    k: at least 1; one number for all rows, or int64 [B] on the CPU.
    """
    largest = k if isinstance(k, int) else int(k.max())
    values = logits.topk(min(largest, logits.shape[-1])).values
    if isinstance(k, int):
        kth = values[:, -1:]
    else:
        kth = values.gather(-1, send(k.clamp(max=logits.shape[-1])[:, None] - 1, logits.device))
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Logits [B, V] with -inf outside the nucleus: the smallest set of most likely tokens with total probability >= p.

    p: one number for all rows, or float32 [B, 1]. Among equally likely tokens, lower ids come first.
    """
    if not logits.is_cpu:
        ordered, tokens = logits.sort(descending=True, stable=True)
        hidden = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, tokens, _outside(ordered, p))
        return logits.masked_fill(hidden, float("-inf"))
    # On a CPU PyTorch's sort also returns indices and takes longer than a small model; NumPy can sort values only.
    ordered = -torch.from_numpy(np.sort((-logits).numpy(), axis=-1))
    count = (~_outside(ordered, p)).sum(-1, keepdim=True)
    least = ordered.gather(-1, count - 1)
    above, equal = logits > least, logits == least
    left = count - above.sum(-1, keepdim=True)
    if (equal.sum(-1, keepdim=True) > left).any():
        equal &= equal.cumsum(-1) <= left
    return logits.masked_fill(~(above | equal), float("-inf"))


def _outside(ordered: Tensor, p: float | Tensor) -> Tensor:
    """Bool [B, V]: whether each of the logits, sorted from the largest, is outside the nucleus; the first never is."""
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= p
    outside[:, 0] = False
    return outside


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """The first token of each row whose cumulative probability exceeds `uniforms`; int64 [B].

    logprobs: [B, V]. uniforms: float64 [B] in [0, 1). The sums are float64, so that rounding differences between
    layouts almost never change a choice. Tokens with probability 0 are never drawn.
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
    return tokens.clamp_(max=logprobs.shape[-1] - 1)  # NaN gives V; the caller checks the log-probability


def choose_tokens(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
) -> tuple[Tensor, Tensor]:
    """The next token of every row, int64 [B], and its log-probability, float32 [B].

    logits: float32 [B, V]. Temperature is applied first, then top-k (0: off), then top-p (1: off); each is one number
    for all rows or a sequence with one per row. The log-probability belongs to the distribution that the token was
    drawn from. Temperature 0 takes the most likely token, with its log-probability at temperature 1.
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
    """Logits after applying `keep` to `rows`, with the value of each row."""
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
