"""The work of a generative checkpoint in a server, on every rank."""

from collections.abc import Iterable
from typing import Any

from megagpt.config.schema import Config
from megagpt.model.continuous_batching import ContinuousBatch, Written
from megagpt.model.generation import Generator
from megagpt.model.generation_config import GenerationConfig
from megagpt.model.kv_cache import tokens_within
from megagpt.model.prefix_store import PrefixStore
from megagpt.model.row import Row
from megagpt.serve.interface import Limits, NewToken, Progress, PromptToken


class TextRunner:
    """Implements `Runner`: continues the prompts of all requests together."""

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

    @property
    def progress(self) -> Progress:
        """See `Runner`."""
        batch = self.batch
        running = len(batch.active) + (batch.reading is not None)
        return Progress(running, batch.prompt_tokens, batch.reused_tokens, batch.new_tokens)

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
