"""Continuing prompts with a trained model, in any layout: batches, a KV cache, sampling, streaming."""

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from megagpt.config.schema import Config
from megagpt.data.tokenizer import Tokenizer
from megagpt.model.continuous_batching import ContinuousBatch
from megagpt.model.generation_config import Completion, GenerationConfig
from megagpt.model.gpt import GPT
from megagpt.model.kv_cache import SPARE_COLUMNS
from megagpt.model.prompt_encoder import PromptEncoder
from megagpt.model.row import Row, uniforms
from megagpt.model.staged_model import StagedModel, for_generation

log = logging.getLogger(__name__)


class Generator(StagedModel):
    """Generates with this rank's chunks of a model.

    All ranks that share the model (tensor and pipeline parallel) must make the same calls and read a stream to its
    end; all of them get the same result. Data-parallel replicas are independent of each other.
    """

    def __init__(self, modules: list[GPT], config: Config, tokenizer: Tokenizer, batch_size: int = 32) -> None:
        """See `StagedModel`; `batch_size` prompts are continued at a time."""
        super().__init__(modules, config, tokenizer)
        self.batch_size = batch_size
        self.prompts = PromptEncoder(tokenizer, self.window, config.data.fim_spm_rate > 0)

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        settings: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Continue each prompt, a text or token ids; results in the order of the prompts.

        seeds: one for every prompt, instead of that of `settings`; its samples then depend on nothing else.

        An empty prompt starts a new document. A completion does not depend on the other prompts (up to rounding).
        Raises DataError for a prompt that leaves no room in the context window or has an unknown token.
        """
        stream = self.stream(prompts, settings, seeds)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    def stream(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        settings: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, str]]:
        """Like `generate`, but yields (index of the prompt, new text) as it comes and returns the completions.

        The pieces of a prompt, joined, are its completion's text; each holds whole characters.
        """
        if settings.top_k > self.tokenizer.vocab_size and self.groups.tp.rank() == 0:
            log.warning("top_k is %d, but there are %d tokens: all count", settings.top_k, self.tokenizer.vocab_size)
        rows = self._rows(prompts, settings, seeds)
        if rows:
            with for_generation(self.modules):
                yield from self._continue(sorted(rows, key=lambda row: -len(row.prompt)))  # little padding
        return [row.completion() for row in rows]

    def row(
        self,
        key: Hashable,
        prompt: list[int],
        settings: GenerationConfig,
        repeat: int = 0,
        alternatives: int | None = None,
        prompt_alternatives: int | None = None,
    ) -> Row:
        """A row that continues `prompt`, as `PromptEncoder` makes it, in a `ContinuousBatch`. `Row` has the last two.

        repeat: number of the completion among those of the same prompt, which get different random numbers.
        Raises DataError for a bias on an unknown token.
        """
        self.prompts.check_bias(settings)
        limit = min(settings.max_new_tokens, self.window - len(prompt))
        numbers = uniforms(settings.seed, prompt, repeat, limit)
        return Row(key, prompt, settings, limit, numbers, alternatives, prompt_alternatives)

    def _rows(self, prompts: Sequence, settings: GenerationConfig, seeds: Sequence[int] | None) -> list[Row]:
        rows, repeats = [], {}
        for index, tokens in enumerate(self.prompts.encode(prompts)):
            repeat = repeats[tuple(tokens)] = repeats.get(tuple(tokens), -1) + 1
            if seeds is None:
                rows.append(self.row(index, tokens, settings, repeat))
            else:
                rows.append(self.row(index, tokens, replace(settings, seed=seeds[index])))
        return rows

    def _continue(self, waiting: list[Row]) -> Iterator[tuple[int, str]]:
        """Continue the rows; the places of those that end go to those that wait."""
        rows, columns = min(self.batch_size, len(waiting)), max(len(row.prompt) + row.limit - 1 for row in waiting)
        columns += SPARE_COLUMNS * (rows < len(waiting))
        batch = ContinuousBatch(self, rows, columns, least_joining=-(-rows // 4))  # for fewer, others wait too often
        for row in waiting:
            batch.add(row)
        while batch.busy:
            for written in batch.step():
                if written.text:
                    yield written.row.key, written.text
