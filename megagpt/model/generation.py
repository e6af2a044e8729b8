"""Text generation with a trained model in any parallel layout: batches, KV cache, sampling, streaming."""

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
    end; they get the same result. Data-parallel replicas are independent of each other.
    """

    def __init__(self, modules: list[GPT], config: Config, tokenizer: Tokenizer, batch_size: int = 32) -> None:
        """See `StagedModel`. batch_size: most prompts that are continued at the same time."""
        super().__init__(modules, config, tokenizer)
        self.batch_size = batch_size
        self.prompts = PromptEncoder(tokenizer, self.window, config.data.fim_spm_rate > 0)

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        settings: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Continue each prompt; completions are in the order of the prompts.

        prompts: texts or token ids; an empty prompt starts a new document. seeds: one for every prompt, in place of
        `settings.seed`; a prompt's samples then do not depend on how often it occurs. A completion does not depend on
        the other prompts (up to rounding). Raises DataError for a prompt that leaves no room in the context window or
        has an unknown token; TrainingDiverged when logits are not finite.
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
        """Like `generate`, but yields (index of the prompt, new text) at once, and returns the completions at the end.

        Each piece of text holds whole characters. Joined, the pieces of a prompt are the text of its completion.
        """
        if settings.top_k > self.tokenizer.vocab_size and self.groups.tp.rank() == 0:
            size = self.tokenizer.vocab_size
            log.warning("top_k is %d, but there are only %d tokens: all tokens are used", settings.top_k, size)
        rows = self._rows(prompts, settings, seeds)
        if rows:
            with for_generation(self.modules):
                # Rows of similar length need little padding.
                yield from self._continue(sorted(rows, key=lambda row: -len(row.prompt)))
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
        """A row for a `ContinuousBatch` that continues `prompt`, token ids from `PromptEncoder.encode`.

        repeat: number of the completion among several of the same prompt, which get different random numbers.
        alternatives, prompt_alternatives: see `Row`. Raises DataError for a bias on an unknown token.
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
        """Continue the rows; a row that ends frees its place for a waiting one."""
        rows, columns = min(self.batch_size, len(waiting)), max(len(row.prompt) + row.limit - 1 for row in waiting)
        columns += SPARE_COLUMNS * (rows < len(waiting))
        # Rows join in groups, because active rows wait while prompts are read.
        batch = ContinuousBatch(self, rows, columns, least_joining=-(-rows // 4))
        for row in waiting:
            batch.add(row)
        while batch.busy:
            for written in batch.step():
                if written.text:
                    yield written.row.key, written.text
