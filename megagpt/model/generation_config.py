"""Settings of text generation, and its result."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megagpt.errors import ConfigError

FinishReason = Literal["end_of_text", "stop", "length", "context"]
"""Why a completion ended: an end-of-text token, a stop string, max_new_tokens, or the end of the context window."""


@dataclass(frozen=True)
class GenerationConfig:
    """How tokens are chosen and when a completion ends. Raises ConfigError for a value out of range."""

    max_new_tokens: int = 128
    """Most tokens to generate."""
    temperature: float = 1.0
    """Divisor of the logits before sampling; 0 takes the most likely token (greedy decoding)."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0: from all tokens."""
    top_p: float = 1.0
    """Sample from the smallest set of most likely tokens whose total probability is at least this (nucleus
    sampling)."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens that are in the prompt or the completion less likely; values below 1, more likely."""
    stop: tuple[str, ...] = ()
    """The completion ends before the first occurrence of any of these strings."""
    seed: int = 0
    """Seed of sampling. The samples of a prompt do not depend on the other prompts of the batch."""
    frequency_penalty: float = 0.0
    """Number subtracted from a token's logit for each time that it is in the completion."""
    presence_penalty: float = 0.0
    """Number subtracted from the logit of each token that is in the completion."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and a number that is added to its logit, before everything else. A mapping is accepted
    too."""

    def __post_init__(self) -> None:
        bias = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "logit_bias", tuple(sorted((token, value) for token, value in bias)))
        require(
            self,
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or a positive number of tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number (1 changes nothing)"),
            ("stop", all(self.stop), "strings of at least one character"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a number (0 changes nothing)"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a number (0 changes nothing)"),
            ("logit_bias", all(math.isfinite(value) for _, value in self.logit_bias), "numbers by token id"),
        )


def require(settings: object, *rules: tuple[str, bool, str]) -> None:
    """Raises ConfigError for the first broken rule; a rule is (name of the field, whether it holds, its wording)."""
    for name, holds, words in rules:
        if not holds:
            raise ConfigError(f"{name} is {getattr(settings, name)!r}; it must be {words}")


@dataclass(frozen=True)
class Completion:
    """The model's continuation of one prompt."""

    text: str
    """The new text, without the stop string; bytes that are not UTF-8 become U+FFFD."""
    tokens: list[int]
    """All generated tokens, including those of the stop string or the end-of-text token at the end."""
    logprobs: list[float]
    """Natural log-probability of each token under the distribution it was drawn from (greedy: at temperature 1)."""
    finish_reason: FinishReason
