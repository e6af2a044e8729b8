"""Stages `pretrain` and `code`: next-token prediction on packed documents.

As in GPT-3 (arXiv 2005.14165) and Codex (arXiv 2107.03374).
"""

import logging

from megagpt.config.schema import Config
from megagpt.data.loader import PretrainLoader
from megagpt.evaluate.fim import evaluate_fim, held_out_cuts
from megagpt.evaluate.held_out import compressed_bits_per_byte, evaluate
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.stages.base import AFTER, BEFORE, BaseStage
from megagpt.train.objectives import LanguageModelObjective
from megagpt.train.state import TrainState

log = logging.getLogger(__name__)

COMPRESSED_BYTES = 8_000_000
COMPRESSED_TOKENS = 4_000_000
"""Limits of the held-out text that gzip and xz compress: the slower one takes about a second per megabyte."""


class Pretrain(BaseStage):
    """Predicts every next token of the corpora. At the end, evaluates all held-out documents and writes samples."""

    loader: PretrainLoader

    def __init__(self, config: Config) -> None:
        """Open the corpora."""
        super().__init__(config, PretrainLoader(config), LanguageModelObjective())

    @property
    def measures_fim(self) -> bool:
        """Whether infilling is evaluated: at the end and, for a loaded model, before the first step."""
        return self.config.data.fim_rate > 0 and self.config.stage.fim_cuts > 0

    def begin(self, state: TrainState) -> None:
        """If the run starts from a loaded model, write its samples; if it trains infilling, evaluation_before.json."""
        if not self.config.checkpoint.load:
            return
        if self.measures_fim:
            self.write_evaluation(BEFORE, state, self._measure())
        self._write_samples(state)

    def finish(self, state: TrainState) -> None:
        """Evaluate the trained model on every validation document, write evaluation.json and samples."""
        values = self._measure()
        self.write_evaluation(AFTER, state, values)
        if self.is_main and values:
            text = self.loader.held_out_text("validation", COMPRESSED_TOKENS)[:COMPRESSED_BYTES]
            compressed = compressed_bits_per_byte(text)
            self.write_evaluation(AFTER, state, values | compressed, new=compressed)
        self._write_samples(state)

    def _measure(self) -> dict[str, float]:
        """Metrics on every validation document; empty when there are none. Collective."""
        values = evaluate(self.engine, self.loader, "validation", max_tokens=None)
        if not values or not self.measures_fim:
            return values
        wanted, unit = self.config.stage.fim_cuts, self.config.data.fim_unit
        cuts = held_out_cuts(self.loader, "validation", wanted)
        if len(cuts) < wanted:
            log.warning("held-out documents give %d %ss to fill in; stage.fim_cuts is %d", len(cuts), unit, wanted)
        return values | evaluate_fim(self.engine, self.loader, cuts)

    def _write_samples(self, state: TrainState) -> None:
        """Continue the configured prompts; write the texts to samples.jsonl and the log. Collective."""
        stage = self.config.stage
        if not stage.sample_prompts:
            return
        settings = GenerationConfig(max_new_tokens=stage.sample_tokens, temperature=0.8, top_p=0.95, seed=0)
        generator = Generator(self.engine.modules, self.config, self.loader.tokenizer)
        completions = generator.generate(list(stage.sample_prompts), settings)
        pairs = list(zip(stage.sample_prompts, completions, strict=True))
        self.write_samples(state, [{"prompt": prompt, "text": completion.text} for prompt, completion in pairs])
        for prompt, completion in pairs:
            log.info("sample:\n%s", prompt + completion.text)
