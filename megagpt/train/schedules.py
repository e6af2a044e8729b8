"""Learning rate and batch size as pure functions of the tokens seen, as GPT-3 publishes them (arXiv 2005.14165, B)."""

import math

from megagpt.config.schema import OptimConfig


def learning_rate(optim: OptimConfig, tokens: int) -> float:
    """Learning rate of the step that ends at `tokens`: linear warm-up, then a cosine to the minimum."""
    if tokens < optim.warmup_tokens:
        start = optim.warmup_start_ratio
        return optim.lr * (start + (1 - start) * tokens / optim.warmup_tokens)
    minimum = optim.lr * optim.min_lr_ratio
    if tokens >= optim.decay_tokens:
        return minimum
    progress = (tokens - optim.warmup_tokens) / (optim.decay_tokens - optim.warmup_tokens)
    return minimum + (optim.lr - minimum) * 0.5 * (1 + math.cos(math.pi * progress))


def global_batch_size(optim: OptimConfig, tokens: int, multiple: int) -> int:
    """Sequences in the step that starts after `tokens`: grows linearly, rounded down to a multiple of `multiple`."""
    if optim.ramp_start is None or tokens >= optim.ramp_tokens:
        return optim.global_batch_size
    size = optim.ramp_start + (optim.global_batch_size - optim.ramp_start) * tokens // optim.ramp_tokens
    return max(optim.ramp_start, size // multiple * multiple)
