"""Rollouts: the policy, or a copy of it in another layout, generates responses to an iteration's prompts."""

from collections.abc import Sequence

import torch

from megagpt.config.schema import Config
from megagpt.data.tokenizer import Tokenizer
from megagpt.model.generation import Generator
from megagpt.model.generation_config import Completion, GenerationConfig
from megagpt.parallel.engine import Engine
from megagpt.parallel.layouts import EngineInLayout
from megagpt.parallel.transfer import copy_weights
from megagpt.rl.episodes import Episodes
from megagpt.rl.offload import on_device
from megagpt.rl.prompts import Prompt
from megagpt.rl.scoring import all_gather_rows


class RolloutGenerator:
    """Fills episodes with the policy's responses, which depend only on the policy, the seed and the iteration."""

    def __init__(self, config: Config, policy: Engine, rollout_copy: Engine | None, tokenizer: Tokenizer) -> None:
        """rollout_copy: receives the policy's weights before it generates. None: the policy generates."""
        self.config, self.policy, self.rollout_copy = config, policy, rollout_copy
        self.engine, self.tokenizer = rollout_copy or policy, tokenizer
        self.dims = self.engine.dims

    @property
    def generator(self) -> Generator:
        """A generator that uses the current weights."""
        return Generator(self.engine.modules, self.config, self.tokenizer, self.config.ppo.generation_batch_size)

    def generate(self, episodes: Episodes, prompts: list[Prompt], iteration: int) -> None:
        """Generate responses to all prompts, each replica to its share, and gather them on every rank. Collective."""
        ppo, rows = self.config.ppo, episodes.rows_of(self.dims).tolist()
        episodes.clear_rollouts()
        settings = GenerationConfig(max_new_tokens=ppo.max_new_tokens, temperature=ppo.temperature)
        # One seed per response, so that the text does not depend on the replica that generates it.
        seeds = [(self.config.seed * 1_000_003 + iteration) * ppo.rollout_batch_size + row for row in rows]
        responses = self._complete([prompts[row].tokens for row in rows], settings, seeds)
        for row, response in zip(rows, responses, strict=True):
            prompt = prompts[row].tokens
            first, last = len(prompt), len(prompt) + len(response.tokens)
            episodes.tokens[row, :last] = torch.tensor(prompt + response.tokens)
            episodes.logprobs[row, first - 1 : last - 1] = torch.tensor(response.logprobs)
            episodes.prompt_lengths[row], episodes.lengths[row] = first, last
            episodes.finished[row] = int(response.finish_reason == "end_of_text")
        all_gather_rows(episodes.rollouts, self.dims)
        episodes.iteration.fill_(iteration)

    def _complete(
        self, prompts: Sequence[list[int]], settings: GenerationConfig, seeds: Sequence[int]
    ) -> list[Completion]:
        if self.rollout_copy is None:
            return self.generator.generate(prompts, settings, seeds)
        with on_device(self.rollout_copy, self.config.ppo.offload):
            copy_weights(self.policy, self.rollout_copy)
            if not isinstance(self.rollout_copy, EngineInLayout):
                return self.generator.generate(prompts, settings, seeds)
            with self.rollout_copy.layout.active():
                return self.generator.generate(prompts, settings, seeds)
