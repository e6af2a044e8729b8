"""What the HTTP side of the server needs of a model: the one file that both sides know."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from megagpt.data.text_batch import Side
from megagpt.data.tokenizer import Tokenizer
from megagpt.model.generation_config import FinishReason, GenerationConfig

Ability = Literal["completions", "suffix", "chat", "edits", "embeddings"]
"""What a checkpoint can be asked for."""

TopLogprobs = tuple[tuple[int, float], ...]
"""The likeliest tokens at a place, likeliest first: (token id, natural log-probability of the model itself)."""


@dataclass(frozen=True)
class PromptToken:
    """What the model says of one token of the prompt."""

    token: int
    logprob: float | None
    """Natural log-probability after the tokens before it; None for the first."""
    top_logprobs: TopLogprobs


@dataclass(frozen=True)
class NewToken:
    """One generated token of one completion."""

    token: int
    text: str
    """The text that this token settles: whole characters, never a part of a stop string; often empty, or longer than
    the token."""
    logprob: float
    """Natural log-probability of the model itself: before penalties, bias, temperature, top-k and top-p."""
    top_logprobs: TopLogprobs
    """As many as the request asked for."""
    finish_reason: FinishReason | None
    """Set on the last token of a completion."""


@dataclass(frozen=True)
class Limits:
    """What the models of a server take on at a time."""

    max_rows: int = 32
    """Completions that each model writes at a time."""
    max_waiting: int = 256
    """Completions, or texts to embed, that may wait for each model; with more, it is Busy."""
    chunk_tokens: int = 512
    """Tokens of prompts that go through a model between two tokens of those who read along, at most."""
    prefix_memory: float = 0.25
    """GiB for each model to keep the keys and values of ended completions in, for prompts that begin alike; 0 keeps
    none."""


@dataclass(frozen=True)
class Load:
    """What a model is doing, and what it has done since it was loaded."""

    running: int
    """Completions that are being written, or texts that are being embedded."""
    waiting: int
    """Those that wait for a place."""
    prompt_tokens: int
    """Tokens of all prompts, or of all texts."""
    reused_tokens: int
    """Of these, the tokens whose keys and values were there already."""
    new_tokens: int
    """Generated tokens."""


@dataclass(frozen=True)
class GenerateRequest:
    """One completion to make."""

    prompt: Sequence[int]
    """Token ids, at least one, fewer than the context window."""
    settings: GenerationConfig
    choice: int = 0
    """Number of this completion among those of one prompt in one request: each has random numbers of its own."""
    top_logprobs: int = 0
    """Alternatives that every NewToken shall have."""
    prompt_logprobs: int | None = None
    """Alternatives for every token of the prompt; None: nothing is asked about the prompt."""


class Busy(Exception):
    """The queue of a model is full: answer 429 with Retry-After."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after
        """Seconds."""


class ServedModel(Protocol):
    """A checkpoint that answers requests. All methods are called from the event loop and never block it."""

    name: str
    """The id of the model in the API."""
    created: int
    """Unix seconds at which the checkpoint was written."""
    tokenizer: Tokenizer
    window: int
    """Tokens of the model's context."""
    abilities: frozenset[Ability]
    dimensions: int
    """Numbers of a vector; 0 for a model that makes none."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[NewToken | list[PromptToken]]:
        """The tokens of a completion as they come; first the list of the prompt's, where these were asked for.

        Closing the iterator (`aclose`), also in the middle, frees the completion's row at the next step. Raises Busy
        at once when the queue is full, DataError for a prompt that does not fit, and MegaGPTError when the model fails.
        """
        ...

    def infill_prompt(self, prefix: str, suffix: str) -> list[int]:
        """Token ids after which the model writes what belongs between the two."""
        ...

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], dimensions: int | None, side: Side = "document"
    ) -> np.ndarray:
        """Vectors of length 1, float32 [n, dimensions or `dimensions`]. Raises Busy as `generate` does.

        side: what the texts are to a model that was trained on queries and documents with delimiters of their own.
        Raises DataError for an empty text, ConfigError for dimensions that the vectors do not have.
        """
        ...

    def count_tokens(self, inputs: Sequence[str]) -> int:
        """Tokens of texts that `embed` reads, as usage counts them."""
        ...

    def load(self) -> Load:
        """What it is doing now."""
        ...


class ModelHost(Protocol):
    """The models of a server, while they run."""

    async def failed(self) -> None:
        """Waits for as long as the models work; raises the MegaGPTError that ended them.

        From then on every request raises it too.
        """
        ...
