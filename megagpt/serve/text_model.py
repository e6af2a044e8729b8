"""A generative checkpoint, as the process that listens sees it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megagpt.data.chat import has_roles, template_of
from megagpt.data.fim import fim_style
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError
from megagpt.model.prompt_encoder import PromptEncoder
from megagpt.serve.interface import Ability, GenerateRequest, Limits, Load, NewToken, PromptToken
from megagpt.serve.model_client import Answer, ModelClient
from megagpt.serve.queueing import OpenRequests


@dataclass(frozen=True)
class TextCard:
    """What is known of a generative checkpoint without its weights."""

    name: str
    created: int
    """Unix seconds at which the checkpoint was written."""
    prompts: PromptEncoder

    def model(self, client: ModelClient, number: int, limits: Limits) -> "TextModel":
        """The model, which runs as number `number` at the other end of the client."""
        return TextModel(self, client, number, limits)


class TextModel:
    """Implements `ServedModel` for a language model."""

    dimensions = 0

    def __init__(self, card: TextCard, client: ModelClient, number: int, limits: Limits) -> None:
        """number: that of the model at the other end of the client."""
        self.name, self.created, self._prompts = card.name, card.created, card.prompts
        self.tokenizer, self.window = card.prompts.tokenizer, card.prompts.window
        self.abilities = _abilities(self.tokenizer)
        self._client, self._number = client, number
        self._open = OpenRequests(limits.max_rows, limits.max_waiting)

    def generate(self, request: GenerateRequest) -> "TokenStream":
        """See `ServedModel.generate`."""
        self._open.check()
        (prompt,) = self._prompts.encode([request.prompt])
        self._prompts.check_bias(request.settings)
        details = {**vars(request), "prompt": prompt, "settings": vars(request.settings)}
        return TokenStream(self._client, self._number, details, self._open)

    def infill_prompt(self, prefix: str, suffix: str) -> list[int]:
        """See `ServedModel.infill_prompt`. Raises DataError where the tokenizer has no tokens for it."""
        return self._prompts.fim_prompt(prefix, suffix)

    async def embed(self, *_: Any, **__: Any) -> Any:
        """Raises ConfigError: a language model computes no vectors."""
        raise ConfigError(f"{self.name} generates text and makes no vectors: take a model of stage embed")

    def count_tokens(self, inputs: Iterable[str]) -> int:
        """See `ServedModel.count_tokens`."""
        return sum(map(len, self.tokenizer.encode_batch(list(inputs))))

    def load(self) -> Load:
        """See `ServedModel.load`."""
        return self._client.load(self._number, self._open.count)


class TokenStream:
    """The asynchronous iterator of `TextModel.generate`, which can be closed."""

    def __init__(self, client: ModelClient, model: int, details: dict[str, Any], requests: OpenRequests) -> None:
        self._client, self._model, self._requests = client, model, requests
        answer: Answer
        self._request, answer = client.ask(model, "generate", details)
        self._answer: Answer | None = answer
        self._begun = requests.add()

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> NewToken | list[PromptToken]:
        if self._answer is None:
            raise StopAsyncIteration
        try:
            result = await self._answer.get()
        except Exception:
            self._end()
            raise
        if isinstance(result, NewToken) and result.finish_reason is not None:
            self._end()
        return result

    async def aclose(self) -> None:
        """Cancel the completion if it still runs."""
        if self._answer is not None:
            self._client.stop(self._model, self._request)
            self._end()

    def _end(self) -> None:
        self._answer = None
        self._client.done(self._request)
        self._requests.remove(self._begun)


def _abilities(tokenizer: Tokenizer) -> frozenset[Ability]:
    """What a checkpoint can be asked for, by the special tokens that it knows."""
    found: set[Ability] = {"completions"}
    if fim_style(tokenizer) is not None:
        found.add("suffix")
    if has_roles(tokenizer) or template_of(tokenizer) is not None:
        found |= {"chat", "edits"}
    return frozenset(found)
