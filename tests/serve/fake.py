"""A model whose next token depends on the last one alone, so that tests can work out what it must answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from megagpt.data.chat import ROLE_TOKENS
from megagpt.data.code_tokens import FIM_TOKENS
from megagpt.data.fim import fim_prompt
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import TrainingDiverged
from megagpt.model.text_stream import TextStream
from megagpt.serve.interface import Busy, GenerateRequest, Load, NewToken, PromptToken
from tests.model.tiny import TEXTS

WINDOW = 64
DIMENSIONS = 8


@cache
def tokenizer(*special: str) -> Tokenizer:
    """Of 300 tokens, and the special ones."""
    return train_tokenizer(TEXTS, 300).with_special_tokens(special)


class FakeModel:
    """A served model without weights."""

    def __init__(
        self, name: str, abilities: set[str], seconds: float = 0.0, places: int = 1000, endless: bool = False
    ) -> None:
        """seconds: for every token. places: completions at a time; with more it is busy. endless: it ends no text."""
        self.name, self.abilities, self.created, self.window = name, frozenset(abilities), 1_700_000_000, WINDOW
        special = [
            *(FIM_TOKENS if "suffix" in abilities else ()),
            *(ROLE_TOKENS.values() if "chat" in abilities else ()),
        ]
        self.tokenizer = tokenizer(*special)
        self.dimensions = DIMENSIONS if "embeddings" in abilities else 0
        self.seconds, self.places, self.broken = seconds, places, False
        self.active, self.made, self.requests = 0, 0, []
        size = self.tokenizer.vocab_size
        logits = np.random.default_rng(len(name)).normal(0, 2, (size, size))
        if endless:
            logits[:, self.tokenizer.end_of_text_id] = -1e9
        self.logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        """float64 [V, V]: of every token after every other one."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[NewToken | list[PromptToken]]:
        if self.active >= self.places:
            raise Busy(2.5)
        self.active += 1
        self.requests.append(request)
        try:
            if request.prompt_logprobs is not None:
                yield self._prompt(request)
            async for token in self._continue(request):
                self.made += 1
                yield token
        finally:
            self.active -= 1

    def top(self, last: int, count: int) -> tuple[tuple[int, float], ...]:
        return tuple((int(one), float(self.logprobs[last, one])) for one in np.argsort(-self.logprobs[last])[:count])

    def _prompt(self, request: GenerateRequest) -> list[PromptToken]:
        ids, count = request.prompt, request.prompt_logprobs
        first = PromptToken(ids[0], None, ())
        return [first, *(PromptToken(b, float(self.logprobs[a, b]), self.top(a, count)) for a, b in pairwise(ids))]

    async def _continue(self, request: GenerateRequest) -> AsyncIterator[NewToken]:
        settings, last, stream = request.settings, request.prompt[-1], TextStream(request.settings.stop)
        random = np.random.default_rng([settings.seed % 2**63, request.choice, *request.prompt])
        limit = min(settings.max_new_tokens, self.window - len(request.prompt))
        for number in range(1, limit + 1):
            await asyncio.sleep(self.seconds)
            if self.broken:
                raise TrainingDiverged("the secret reason")
            logprobs = self.logprobs[last]
            token = int(
                logprobs.argmax() if settings.temperature == 0 else random.choice(len(logprobs), p=np.exp(logprobs))
            )
            text, reason = stream.add(self.tokenizer.decode_bytes([token])), None
            if stream.stopped:
                reason = "stop"
            elif token == self.tokenizer.end_of_text_id:
                reason = "end_of_text"
            elif number == limit:
                reason = "length"
            text += stream.finish() if reason else ""
            yield NewToken(token, text, float(logprobs[token]), self.top(last, request.top_logprobs), reason)
            if reason:
                return
            last = token

    def infill_prompt(self, prefix: str, suffix: str) -> list[int]:
        return fim_prompt(self.tokenizer, prefix, suffix)

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], dimensions: int | None, side: str = "document"
    ) -> np.ndarray:
        if self.active >= self.places:
            raise Busy(2.5)
        ids = [self.tokenizer.encode(one) if isinstance(one, str) else one for one in inputs]
        table = np.random.default_rng(side == "query").normal(size=(self.tokenizer.vocab_size, DIMENSIONS))
        vectors = np.stack([table[one].sum(0)[:dimensions] for one in ids])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def count_tokens(self, inputs: Sequence[str]) -> int:
        return sum(len(self.tokenizer.encode(text)) for text in inputs)

    def load(self) -> Load:
        return Load(self.active, 0, sum(len(one.prompt) for one in self.requests), 0, self.made)
