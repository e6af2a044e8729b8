"""Serves a language model."""

from collections.abc import Iterable
from typing import Any

from megagpt.config.schema import Config
from megagpt.data.chat import has_roles, template_of
from megagpt.data.fim import fim_style
from megagpt.errors import ConfigError
from megagpt.model.continuous_batching import ContinuousBatch, Written
from megagpt.model.generation import Generator
from megagpt.model.generation_config import GenerationConfig
from megagpt.model.kv_cache import tokens_within
from megagpt.model.prefix_store import PrefixStore
from megagpt.model.row import Row
from megagpt.serve.interface import Ability, GenerateRequest, Limits, Load, NewToken, PromptToken
from megagpt.serve.model_loop import Answer, ModelLoop
from megagpt.serve.queueing import OpenRequests


class TextRunner:
    """Implements `Runner`: generates the completions of all requests in one batch."""

    def __init__(self, generator: Generator, config: Config, limits: Limits) -> None:
        self.generator = generator
        kept = tokens_within(limits.prefix_memory, config, generator.modules[0].config.params_dtype)
        prefixes = PrefixStore(kept) if kept else None
        self.batch = ContinuousBatch(generator, limits.max_rows, None, limits.chunk_tokens, prefixes)
        self._rows: dict[int, Row] = {}

    @property
    def busy(self) -> bool:
        """See `Runner`."""
        return self.batch.busy

    def obey(self, verb: str, number: int, details: dict[str, Any]) -> None:
        """See `Runner`; `details` are the fields of a GenerateRequest."""
        if verb == "stop":
            if (row := self._rows.pop(number, None)) is not None:
                self.batch.cancel(row)
            return
        settings = GenerationConfig(**details["settings"])
        wanted = details["top_logprobs"], details["prompt_logprobs"]
        row = self.generator.row(number, list(details["prompt"]), settings, details["choice"], *wanted)
        self._rows[number] = row
        self.batch.add(row)

    def work(self) -> Iterable[tuple[int, Any]]:
        """See `Runner`; a result is a list of PromptToken or a NewToken."""
        results: list[tuple[int, Any]] = []
        for written in self.batch.step():
            row = written.row
            if len(row.tokens) == 1 and row.prompt_alternatives is not None:
                results.append((row.key, _prompt_tokens(row)))
            results.append((row.key, _new_token(written)))
            if row.finish_reason is not None:
                self._rows.pop(row.key, None)
        return results


def _prompt_tokens(row: Row) -> list[PromptToken]:
    later = zip(row.prompt[1:], row.prompt_scores, strict=True)
    return [PromptToken(row.prompt[0], None, ()), *(PromptToken(token, *score) for token, score in later)]


def _new_token(written: Written) -> NewToken:
    reason = written.row.finish_reason
    return NewToken(written.token, written.text, written.model_logprob, written.alternatives, reason)


class TextModel:
    """Implements `ServedModel` for a language model."""

    dimensions = 0

    def __init__(
        self, name: str, created: int, runner: TextRunner, loop: ModelLoop, number: int, limits: Limits
    ) -> None:
        """number: index of the runner among the loop's runners."""
        self.name, self.created, self._generator = name, created, runner.generator
        self.tokenizer, self.window = runner.generator.tokenizer, runner.generator.window
        self.abilities = _abilities(runner.generator)
        self._batch, self._loop, self._number = runner.batch, loop, number
        self._open = OpenRequests(limits.max_rows, limits.max_waiting)

    def generate(self, request: GenerateRequest) -> "TokenStream":
        """See `ServedModel.generate`."""
        self._open.check()
        (prompt,) = self._generator.encode([request.prompt])
        self._generator.check_bias(request.settings)
        details = {**vars(request), "prompt": prompt, "settings": vars(request.settings)}
        return TokenStream(self._loop, self._number, details, self._open)

    def infill_prompt(self, prefix: str, suffix: str) -> list[int]:
        """See `ServedModel.infill_prompt`. Raises DataError if the tokenizer has no fill-in-the-middle tokens."""
        return self._generator.fim_prompt(prefix, suffix)

    async def embed(self, *_: Any, **__: Any) -> Any:
        """Raises ConfigError: a language model computes no vectors."""
        raise ConfigError(f"{self.name} generates text and makes no vectors: take a model of stage embed")

    def count_tokens(self, inputs: Iterable[str]) -> int:
        """See `ServedModel.count_tokens`."""
        return sum(map(len, self.tokenizer.encode_batch(list(inputs))))

    def load(self) -> Load:
        """See `ServedModel.load`."""
        batch = self._batch
        running = min(len(batch.active) + (batch.reading is not None), self._open.count)
        waiting = self._open.count - running
        return Load(running, waiting, batch.prompt_tokens, batch.reused_tokens, batch.new_tokens)


class TokenStream:
    """The asynchronous iterator of `TextModel.generate`, which can be closed."""

    def __init__(self, loop: ModelLoop, model: int, details: dict[str, Any], requests: OpenRequests) -> None:
        self._loop, self._model, self._requests = loop, model, requests
        answer: Answer
        self._request, answer = loop.ask(model, "generate", details)
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
            self._loop.stop(self._model, self._request)
            self._end()

    def _end(self) -> None:
        self._answer = None
        self._loop.done(self._request)
        self._requests.remove(self._begun)


def _abilities(generator: Generator) -> frozenset[Ability]:
    """The abilities of a language model, which depend on its tokenizer's special tokens and chat template."""
    tokenizer = generator.tokenizer
    found: set[Ability] = {"completions"}
    if fim_style(tokenizer) is not None:
        found.add("suffix")
    if has_roles(tokenizer) or template_of(tokenizer) is not None:
        found |= {"chat", "edits"}
    return frozenset(found)
