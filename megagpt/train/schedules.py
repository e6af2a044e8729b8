"""Learning rate and batch size as pure functions of the tokens seen, as in GPT-3 (arXiv 2005.14165, appendix B)."""

import dataclasses
import math
from collections.abc import Iterator

from megagpt.config.schema import OptimConfig


def learning_rate(optim: OptimConfig, tokens: int) -> float:
    """Learning rate of the step that ends at `tokens`: a linear warm-up, then the decay of `optim.schedule`.

    cosine: half a cosine to the minimum. wsd: the peak until `optim.decay_begin`, then to the minimum by 1 - sqrt
    (Haegele et al., arXiv 2405.18392) or linearly.
    """
    lengths, begin = optim.lengths, optim.decay_begin
    if tokens < lengths.warmup_tokens:
        start = optim.warmup_start_ratio
        return optim.lr * (start + (1 - start) * tokens / lengths.warmup_tokens)
    minimum = optim.lr * optim.min_lr_ratio
    if tokens >= lengths.decay_tokens:
        return minimum
    if tokens <= begin:
        return optim.lr
    progress = (tokens - begin) / (lengths.decay_tokens - begin)
    if optim.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = 1 - (math.sqrt(progress) if optim.decay_shape == "sqrt" else progress)
    return minimum + (optim.lr - minimum) * left


def global_batch_size(optim: OptimConfig, tokens: int, multiple: int) -> int:
    """Sequences in the step that starts after `tokens`: a linear ramp, rounded down to a multiple of `multiple`."""
    ramp_tokens = optim.lengths.ramp_tokens
    if optim.ramp_start is None or tokens >= ramp_tokens:
        return optim.global_batch_size
    size = optim.ramp_start + (optim.global_batch_size - optim.ramp_start) * tokens // ramp_tokens
    return max(optim.ramp_start, size // multiple * multiple)


def describe_schedule(optim: OptimConfig) -> str:
    """One line about the run's schedule, which marks the parts that were scaled from the published schedule."""
    schedule, published = optim.lengths, optim.published.train_tokens
    stable = f"stays until {optim.decay_begin:,} and " if optim.schedule == "wsd" else ""
    texts = {
        "warmup_tokens": f"warm-up over {schedule.warmup_tokens:,}",
        "decay_tokens": (
            f"lr {optim.lr:g} {stable}decays to {optim.lr * optim.min_lr_ratio:g} at {schedule.decay_tokens:,}"
        ),
        "ramp_tokens": f"batch {optim.ramp_start} to {optim.global_batch_size} over {schedule.ramp_tokens:,}",
    }
    scaled = {name for name in texts if schedule.train_tokens != published and getattr(optim, name) is None}
    if optim.schedule == "wsd":  # its decay ends with the run and is not scaled
        scaled.discard("decay_tokens")
    parts = [texts[name] + (" (scaled)" if name in scaled else "") for name in _parts(optim)]
    line = "; ".join([f"schedule of {schedule.train_tokens:,} tokens", *parts])
    return f"{line}; scaled from the published {published:,} tokens" if "(scaled)" in line else line


def misfits(optim: OptimConfig, sample_tokens: int | None = None) -> Iterator[str]:
    """A warning for each part of the schedule that is longer than the run, with a value that would fit.

    sample_tokens: tokens of a sample. If it is given, there is also a warning when rounding up to whole steps makes the
    run notably longer than optim.train_tokens.
    """
    if sample_tokens is not None:
        yield from _longer_by_whole_steps(optim, sample_tokens)
    schedule, end = optim.lengths, optim.train_tokens
    fitting = dataclasses.replace(optim, warmup_tokens=None, decay_tokens=None, ramp_tokens=None).lengths
    effects = {
        "warmup_tokens": f"the learning rate never reaches its peak ({optim.lr:g})",
        "decay_tokens": (
            f"the learning rate ends at {learning_rate(optim, end):g} and not at its minimum"
            f" ({optim.lr * optim.min_lr_ratio:g})"
        ),
        "ramp_tokens": f"the batch never reaches optim.global_batch_size ({optim.global_batch_size})",
    }
    for name in _parts(optim):
        if getattr(schedule, name) > end:
            yield (
                f"optim.{name} ({getattr(schedule, name):,}) is longer than the run, optim.train_tokens ({end:,}), so"
                f" that {effects[name]}: set optim.{name}={getattr(fitting, name)}, or null for just that"
            )


def _longer_by_whole_steps(optim: OptimConfig, sample_tokens: int) -> Iterator[str]:
    tokens, steps = 0, 0
    while tokens < optim.train_tokens and steps < 10:  # for more steps, rounding up adds less than a tenth
        tokens += sample_tokens * global_batch_size(optim, tokens, 1)
        steps += 1
    if tokens > 1.1 * optim.train_tokens:
        yield (
            f"optim.train_tokens ({optim.train_tokens:,}) is not a whole number of steps: the run takes {steps} steps,"
            f" {tokens:,} tokens"
        )


def _parts(optim: OptimConfig) -> list[str]:
    """Names of the parts of the schedule that this run has."""
    parts = {
        "warmup_tokens": optim.lengths.warmup_tokens > 0,
        "decay_tokens": optim.min_lr_ratio < 1,
        "ramp_tokens": optim.ramp_start is not None,
    }
    return [name for name, present in parts.items() if present]
