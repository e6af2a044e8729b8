"""Cross-entropy by torch, differentiable, in the dtype of the logits; and random cases of it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def truth(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Losses [...] of logits [..., C] and labels [...], by F.cross_entropy and torch.logsumexp."""
    real = logits[..., :vocab_size]
    flat, flat_labels = real.reshape(-1, real.shape[-1]), labels.reshape(-1)
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": "none"}
    losses = F.cross_entropy(flat, flat_labels, **options)
    penalty = z_loss * real.logsumexp(-1) ** 2
    return losses.view(labels.shape) + penalty.masked_fill(labels == ignore_index, 0.0)


def linear_truth(hidden: Tensor, weight: Tensor, labels: Tensor, **options) -> Tensor:
    """The same of hidden @ weight.T."""
    return truth(hidden @ weight.T, labels, **options)


def random_case(seed: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, dict]:
    """Logits [2, N, columns], labels and weights of the losses [2, N], and options, all drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*of: float) -> float:
        return of[int(torch.randint(len(of), (), generator=generator))]

    tokens, vocab_size = int(draw(1, 3, 8)), int(draw(1, columns // 3 + 1, columns - 1, columns))
    logits = (draw(0.1, 3.0, 30.0) * torch.randn(2, tokens, columns, generator=generator)).to(dtype)
    labels = torch.randint(0, max(vocab_size, 1), (2, tokens), generator=generator)
    ignore_index = int(draw(-100, 0))
    labels[torch.rand(labels.shape, generator=generator) < draw(0.0, 0.3)] = ignore_index
    options = {
        "vocab_size": max(vocab_size, 1),
        "ignore_index": ignore_index,
        "label_smoothing": draw(0.0, 0.1, 1.0),
        "z_loss": draw(0.0, 1e-2),
    }
    return logits, labels, torch.rand(labels.shape, generator=generator), options
