"""One prompt that is being continued."""

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from megagpt.data.batch import send
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import TrainingDiverged
from megagpt.model.generation_config import Completion, FinishReason, GenerationConfig
from megagpt.model.text_stream import TextStream

Alternatives = tuple[tuple[int, float], ...]
"""The likeliest tokens at a place, likeliest first, as (token id, natural log-probability).

The log-probabilities are the model's own, before bias, penalties, temperature, top-k and top-p.
"""


@dataclass(eq=False)
class Row:
    """A prompt, the settings of its continuation, and its continuation so far."""

    key: Hashable
    """The caller's name for the row."""
    prompt: list[int]
    settings: GenerationConfig
    limit: int
    """Most new tokens: `settings.max_new_tokens`, or fewer if the context window has less room."""
    uniforms: np.ndarray
    """float64 [limit] in [0, 1): the random numbers that choose its tokens, see `uniforms`."""
    alternatives: int | None = None
    """Number of alternatives for each new token, with the model's own log-probabilities; None: neither is computed."""
    prompt_alternatives: int | None = None
    """The same for the tokens of the prompt."""

    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each new token under the distribution it was drawn from."""
    prompt_scores: list[tuple[float, Alternatives]] = field(default_factory=list)
    """With `prompt_alternatives`: log-probability and alternatives of the prompt's tokens, from the second one on."""
    finish_reason: FinishReason | None = None
    read: int = 0
    """Number of the prompt's tokens whose keys and values are computed."""

    def __post_init__(self) -> None:
        self.stream = TextStream(self.settings.stop)
        self.prompt_array = np.array(self.prompt, dtype=np.int64)
        self._shift: Tensor | None = None
        self._seen: Tensor | None = None

    def completion(self) -> Completion:
        """The continuation, once it has ended."""
        return Completion("".join(self.text), self.tokens, self.logprobs, self.finish_reason)

    def advance(self, token: int, logprob: float, tokenizer: Tokenizer) -> str:
        """Append a token and check whether the row ends; returns the text that is now final.

        Raises TrainingDiverged when the log-probability is NaN.
        """
        if math.isnan(logprob):
            raise TrainingDiverged("the model's logits are not finite: load an earlier checkpoint")
        settings = self.settings
        if self._shift is not None and (settings.frequency_penalty or settings.presence_penalty):
            again = token in self.tokens
            self._shift[token].sub_(settings.frequency_penalty + (0 if again else settings.presence_penalty))
        if self._seen is not None:
            self._seen[token].fill_(True)
        self.tokens.append(token)
        self.logprobs.append(logprob)
        text = self.stream.add(tokenizer.decode_bytes([token]))
        if self.stream.stopped:
            self.finish_reason = "stop"
        elif token in tokenizer.end_ids:
            self.finish_reason = "end_of_text"
        elif len(self.tokens) == self.limit:
            self.finish_reason = "length" if self.limit == settings.max_new_tokens else "context"
        if self.finish_reason is not None:
            text += self.stream.finish()
        self.text.append(text)
        return text

    def shift(self, like: Tensor) -> Tensor | None:
        """Sum of bias, frequency penalty and presence penalty for the next logits, [V] like `like`; None if unused."""
        settings = self.settings
        if self._shift is None and (settings.logit_bias or settings.frequency_penalty or settings.presence_penalty):
            values = torch.zeros(like.shape, dtype=like.dtype)
            for token, bias in settings.logit_bias:
                values[token] = bias
            self._shift = send(values, like.device)
        return self._shift

    def seen(self, like: Tensor) -> Tensor | None:
        """Bool [V] on the device of `like`, True for tokens with the repetition penalty; None without a penalty."""
        if self._seen is None and self.settings.repetition_penalty != 1:
            values = torch.zeros(like.shape, dtype=torch.bool)
            values[torch.from_numpy(self.prompt_array)] = True
            self._seen = send(values, like.device)
        return self._seen


def uniforms(seed: int, prompt: Sequence[int], repeat: int, count: int) -> np.ndarray:
    """The random numbers of one completion, float64 [count] in [0, 1); they depend only on the arguments.

    repeat: how often the same prompt occurred before in the same call.
    """
    digest = hashlib.sha256(f"{seed}/{repeat}/{prompt}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest))).random(count)
