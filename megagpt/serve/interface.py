"""The interface between the server's HTTP side and its models."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from megagpt.data.text_batch import Side
from megagpt.data.tokenizer import Tokenizer
from megagpt.model.generation_config import FinishReason, GenerationConfig

Ability = Literal["completions", "suffix", "chat", "edits", "embeddings"]
"""A kind of request that a checkpoint can serve."""

TopLogprobs = tuple[tuple[int, float], ...]
"""The most likely tokens at a position, in descending order: (token id, natural log-probability under the model)."""


@dataclass(frozen=True)
class PromptToken:
    """One token of the prompt, with the model's log-probabilities."""

    token: int
    logprob: float | None
    """Natural log-probability after the tokens before it; None for the first."""
    top_logprobs: TopLogprobs


@dataclass(frozen=True)
class NewToken:
    """One generated token of one completion."""

    token: int
    text: str
    """The text that becomes final with this token: whole characters, never a part of a stop string. It may be empty, or
    longer than the token's own text."""
    logprob: float
    """Natural log-probability under the model, before penalties, bias, temperature, top-k and top-p."""
    top_logprobs: TopLogprobs
    """As many alternatives as the request asks for."""
    finish_reason: FinishReason | None
    """Set on the last token of a completion."""


@dataclass(frozen=True)
class Limits:
    """Limits of each model of a server."""

    max_rows: int = 32
    """Completions that a model generates at the same time."""
    max_waiting: int = 256
    """Completions, or texts to embed, that may wait for a model; further requests raise Busy."""
    chunk_tokens: int = 512
    """Largest number of prompt tokens that a model processes between two generated tokens of running completions."""
    prefix_memory: float = 0.25
    """GiB per model for the keys and values of finished completions, reused by prompts with the same beginning; 0 keeps
    none."""


@dataclass(frozen=True)
class Progress:
    """What the process with the models says of one model after each step. `Load` explains the fields."""

    running: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True)
class Load:
    """A model's current work, and its token counts since it was loaded."""

    running: int
    """Number of completions that are being generated, or texts that are being embedded."""
    waiting: int
    """Number of completions or texts that wait."""
    prompt_tokens: int
    """Tokens of all prompts, or of all texts."""
    reused_tokens: int
    """Those of `prompt_tokens` whose keys and values were reused."""
    new_tokens: int
    """Generated tokens."""


@dataclass(frozen=True)
class GenerateRequest:
    """A request for one completion."""

    prompt: Sequence[int]
    """Token ids; at least one, and fewer than the context window."""
    settings: GenerationConfig
    choice: int = 0
    """Number of this completion among the completions of one prompt in one request; selects its random stream."""
    top_logprobs: int = 0
    """Number of alternatives for every NewToken."""
    prompt_logprobs: int | None = None
    """Number of alternatives for every token of the prompt; None asks for no prompt tokens."""


class Busy(Exception):
    """The queue of a model is full; the HTTP side answers 429 with Retry-After."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after
        """Seconds."""


class ServedModel(Protocol):
    """A checkpoint that serves requests. All methods are called from the event loop and never block it."""

    name: str
    """The model's id in the API."""
    created: int
    """Unix time in seconds at which the checkpoint was written."""
    tokenizer: Tokenizer
    window: int
    """Tokens of the model's context."""
    abilities: frozenset[Ability]
    dimensions: int
    """Numbers per vector; 0 for a model that computes no vectors."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[NewToken | list[PromptToken]]:
        """The tokens of a completion as they are generated; first a list of the prompt's tokens, if requested.

        Closing the iterator (`aclose`) at any time frees the completion's row at the next step. Raises Busy at once
        when the queue is full, DataError for a prompt that does not fit, and MegaGPTError when the model fails.
        """
        ...

    def infill_prompt(self, prefix: str, suffix: str) -> list[int]:
        """Token ids of a prompt after which the model generates the text between prefix and suffix."""
        ...

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], dimensions: int | None, side: Side = "document"
    ) -> np.ndarray:
        """Vectors of length 1, float32 [n, dimensions]; `dimensions` None means the model's.

        side: whether the texts are queries or documents, for models with different delimiters for the two. Raises Busy
        when the queue is full, DataError for an empty text, ConfigError for more dimensions than the vectors have.
        """
        ...

    def count_tokens(self, inputs: Sequence[str]) -> int:
        """Number of tokens that `embed` reads for the texts, as `usage` reports it."""
        ...

    def load(self) -> Load:
        """The model's current load."""
        ...


class ModelHost(Protocol):
    """The models of a server, while they run."""

    async def failed(self) -> None:
        """Waits for as long as the models work; raises the MegaGPTError that ended them.

        From then on every request raises it too.
        """
        ...
