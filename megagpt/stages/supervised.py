"""Stages `edit` and `sft`: supervised training on the assistant's messages (InstructGPT, arXiv 2203.02155)."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from megagpt.config.schema import Config
from megagpt.data.chat import Message, chat_prompt
from megagpt.data.conversation_loader import ConversationLoader
from megagpt.errors import DataError
from megagpt.evaluate.edits import generate_edits, read_edits, similarity
from megagpt.evaluate.held_out import evaluate
from megagpt.evaluate.scores import score
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.stages.base import AFTER, BEFORE, BaseStage
from megagpt.stages.scoring import frozen_engine, reward_model_config
from megagpt.train.objectives import LanguageModelObjective, RewardObjective
from megagpt.train.state import TrainState

log = logging.getLogger(__name__)

NOTABLE = 0.05
"""Rounding to whole steps is logged if it changes the length of a run by more than this fraction."""


class Supervised(BaseStage):
    """Trains on conversations for `optim.train_epochs` or `train_tokens`; evaluates held-out ones before and after."""

    loader: ConversationLoader

    def __init__(self, config: Config) -> None:
        """Open the conversations, the held-out edits, and the prompts for `stage.reward_model`.

        Raises ConfigError when `stage.reward_model` is not a reward model, DataError when no prompt fits.
        """
        loader = ConversationLoader(config)
        config = with_epochs(config, len(loader.rows["train"]), loader.sample_tokens)
        super().__init__(config, loader, LanguageModelObjective())
        edits = config.stage.held_out_edits
        self.edits = [] if edits is None else read_edits(Path(edits))
        self.scored: Config | None = None
        if config.stage.reward_model is not None:
            self.scored = reward_model_config(config, config.stage.reward_model, "stage.reward_model")
            self.reward_prompts = self._reward_prompts(self.scored.model.sequence_length)

    def build(self) -> None:
        """See `Stage.build`; also builds `stage.reward_model`, if configured."""
        super().build()
        if self.scored is not None:
            self.reward_engine, self.reward_source = frozen_engine(self.scored, RewardObjective())

    @property
    def sources(self) -> dict[str, Path]:
        """See `Stage.sources`: the reward model's checkpoint."""
        return {} if self.scored is None else {"stage.reward_model": self.reward_source}

    def begin(self, state: TrainState) -> None:
        """Evaluate the loaded model, write evaluation_before.json and samples."""
        self.write_evaluation(BEFORE, state, self._measure())
        self._write_samples(state)

    @property
    def evaluation_metrics(self) -> list[str]:
        """See `Stage.evaluation_metrics`."""
        return super().evaluation_metrics + ([] if self.scored is None else ["validation_reward"])

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """See `Stage.evaluate`; also `validation_reward`, the mean score of responses to held-out prompts."""
        values = super().evaluate(state)
        if self.scored is None:
            return values
        return values | {"validation_reward": float(self._score_responses().mean())}

    def finish(self, state: TrainState) -> None:
        """Evaluate the trained model, write evaluation.json and samples."""
        self.write_evaluation(AFTER, state, self._measure())
        self._write_samples(state)

    def _measure(self) -> dict[str, float]:
        """Metrics on all held-out conversations and edits. Collective."""
        return evaluate(self.engine, self.loader, "validation", max_tokens=None) | self._measure_edits()

    def _measure_edits(self) -> dict[str, float]:
        """Exact match and similarity on the held-out edits; every replica generates all of them."""
        if not self.edits:
            return {}
        responses = generate_edits(self._generator(), self.edits, self.config.model.sequence_length // 2)
        pairs = list(zip(self.edits, responses, strict=True))
        count = len(pairs)
        return {
            "edits": count,
            "edits_too_long": responses.count(None),
            "edit_exact_match": sum(edit.output == response for edit, response in pairs) / count,
            "edit_similarity": sum(similarity(edit.output, response or "") for edit, response in pairs) / count,
            "unchanged_similarity": sum(similarity(edit.output, edit.input) for edit in self.edits) / count,
        }

    def _reward_prompts(self, reward_context: int) -> list[list[int]]:
        """Token ids of at most `stage.reward_prompts` held-out prompts that leave room for a response in both contexts.

        reward_context: context of the reward model, in tokens. Raises DataError when there is no such prompt.
        """
        config, tokenizer = self.config, self.loader.tokenizer
        room = min(config.model.sequence_length, reward_context) - config.stage.sample_tokens
        prompts = [one.messages[:-1] for one in self.loader.conversations["validation"]]
        encoded = [chat_prompt(tokenizer, messages) for messages in prompts if messages and messages[-1].role == "user"]
        chosen = [prompt for prompt in encoded if len(prompt) <= room][: config.stage.reward_prompts]
        if not chosen:
            raise DataError(
                f"no held-out prompt leaves room for stage.sample_tokens ({config.stage.sample_tokens}), so"
                " stage.reward_model has nothing to score: lower stage.sample_tokens, or give data.split a validation"
                " share"
            )
        log.info("stage.reward_model will score responses to %d of %d held-out prompts", len(chosen), len(encoded))
        return chosen

    def _score_responses(self) -> np.ndarray:
        """Scores, float [n], of greedy responses to the held-out prompts; every replica generates all. Collective."""
        settings = GenerationConfig(max_new_tokens=self.config.stage.sample_tokens, temperature=0)
        responses = self._generator().generate(self.reward_prompts, settings)
        rows = [
            np.array([*prompt, *response.tokens])
            for prompt, response in zip(self.reward_prompts, responses, strict=True)
        ]
        return score(self.reward_engine, self.scored, self.loader.tokenizer, rows)

    def _write_samples(self, state: TrainState) -> None:
        """Respond to the configured prompts; write the responses to samples.jsonl and the log. Collective."""
        stage = self.config.stage
        if not stage.sample_prompts:
            return
        settings = GenerationConfig(max_new_tokens=stage.sample_tokens, temperature=0)
        prompts = [chat_prompt(self.loader.tokenizer, [Message("user", prompt)]) for prompt in stage.sample_prompts]
        responses = self._generator().generate(prompts, settings)
        pairs = list(zip(stage.sample_prompts, responses, strict=True))
        self.write_samples(state, [{"prompt": prompt, "text": response.text} for prompt, response in pairs])
        for prompt, response in pairs:
            log.info("sample:\n%s\n%s", prompt, response.text)

    def _generator(self) -> Generator:
        return Generator(self.engine.modules, self.config, self.loader.tokenizer)


def with_epochs(config: Config, samples: int, sample_tokens: int) -> Config:
    """`config` with `train_tokens` and `decay_tokens` for `train_epochs` passes over `samples`, in whole steps.

    sample_tokens: number of tokens that the schedule counts per sample, see `Loader.sample_tokens`.
    """
    optim = config.optim
    if optim.train_epochs is None:
        return config
    steps = max(1, round(optim.train_epochs * samples / optim.global_batch_size))
    rows = steps * optim.global_batch_size
    if abs(rows / (optim.train_epochs * samples) - 1) > NOTABLE:
        log.warning(
            "optim.train_epochs (%g) of %d samples are %g samples; in whole steps of optim.global_batch_size (%d) the"
            " run takes %d samples, which is %.2f epochs",
            optim.train_epochs,
            samples,
            optim.train_epochs * samples,
            optim.global_batch_size,
            rows,
            rows / samples,
        )
    tokens = rows * sample_tokens
    optim = dataclasses.replace(optim, train_tokens=tokens, decay_tokens=tokens)
    optim = dataclasses.replace(optim, warmup_tokens=min(optim.lengths.warmup_tokens, tokens))
    return dataclasses.replace(config, optim=optim)
