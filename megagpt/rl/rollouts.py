"""Collects an iteration: the policy answers prompts, and each answer is scored, valued, and held to the reference."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from megagpt.config.schema import Config, PPOConfig
from megagpt.data.chat import Message, chat_prompt
from megagpt.data.conversations import Conversation
from megagpt.data.packed import permutation
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError
from megagpt.model.generation import GenerationConfig
from megagpt.rl import ppo_math
from megagpt.rl.episodes import Episodes
from megagpt.rl.rewards import Reward, answer
from megagpt.rl.scoring import Scorer, share
from megagpt.rl.writer import Writer

log = logging.getLogger(__name__)

SAMPLES = 8
"""Episodes of an iteration that are kept as text."""


@dataclass(frozen=True)
class Prompt:
    """What is answered."""

    messages: tuple[Message, ...]
    tokens: list[int]
    check: dict[str, Any] | None
    """What the record says about right answers."""


def read_prompts(tokenizer: Tokenizer, conversations: Sequence[Conversation], ppo: PPOConfig) -> list[Prompt]:
    """Each conversation without its last answer. Raises DataError when none is left, or lacks what the reward needs."""
    prompts, too_long = [], 0
    for conversation in conversations:
        messages = conversation.messages
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1].role != "user":
            raise DataError(f"a conversation of data.conversations has no user's turn to answer: {messages!r:.200}")
        check = conversation.extra.get("check")
        if ppo.reward == "checker" and not isinstance(check, dict):
            raise DataError(f'ppo.reward is checker, but a record has no "check": {messages[-1].content!r:.200}')
        tokens = chat_prompt(tokenizer, messages)
        if len(tokens) <= ppo.max_prompt_tokens:
            prompts.append(Prompt(messages, tokens, check))
        else:
            too_long += 1
    if too_long:
        log.warning(
            "%d of %d prompts are left out: longer than ppo.max_prompt_tokens (%d)",
            *(too_long, len(conversations), ppo.max_prompt_tokens),
        )
    if not prompts:
        raise DataError(
            f"no prompt is left of {len(conversations)} in data.conversations: use more, or raise ppo.max_prompt_tokens"
        )
    return prompts


class Collector:
    """Fills `episodes` with iterations, which are functions of the models, the seed and the iteration's number."""

    def __init__(
        self,
        config: Config,
        episodes: Episodes,
        prompts: list[Prompt],
        writer: Writer,
        critic: Scorer,
        reference: Scorer,
        reward: Reward,
    ) -> None:
        """`critic` and `reference` give values and log-probabilities (`ValueObjective`, `LogProbObjective`)."""
        self.ppo, self.seed = config.ppo, config.seed
        self.episodes, self.prompts, self.writer = episodes, prompts, writer
        self.critic, self.reference, self.reward = critic, reference, reward
        self.seconds: dict[str, float] = {}
        self.samples: list[dict[str, Any]] = []
        """The first episodes of the iteration, as text with their scores."""
        self._order = lru_cache(maxsize=2)(partial(permutation, len(prompts), config.seed))

    def collect(self, iteration: int) -> None:
        """Fill the episodes with iteration `iteration`. Collective."""
        episodes, ppo = self.episodes, self.ppo
        chosen = [self._prompt(iteration, row) for row in range(ppo.rollout_batch_size)]
        with self._timed("rollout"):
            self._answer(iteration, chosen)
        with self._timed("scoring"):
            episodes.scores.copy_(self.reward(episodes, [prompt.check for prompt in chosen]))
            episodes.values.copy_(self.critic(episodes) * episodes.mask)
            episodes.reference.copy_(self.reference(episodes))
        episodes.figures = self._learnable() | {f"{name}_seconds": value for name, value in self.seconds.items()}
        episodes.iteration.fill_(iteration)
        self.samples = self._texts(chosen)

    def _prompt(self, iteration: int, row: int) -> Prompt:
        epoch, place = divmod(iteration * self.ppo.rollout_batch_size + row, len(self.prompts))
        return self.prompts[self._order(epoch)[place]]

    def _answer(self, iteration: int, chosen: list[Prompt]) -> None:
        """Write all answers, each replica its part, and give them to every rank."""
        episodes, rows = self.episodes, self.episodes.rows_of(self.writer.dims).tolist()
        for value in episodes.written:
            value.zero_()
        settings = GenerationConfig(max_new_tokens=self.ppo.max_new_tokens, temperature=self.ppo.temperature)
        # Every answer has random numbers of its own, whatever replica writes it.
        seeds = [(self.seed * 1_000_003 + iteration) * self.ppo.rollout_batch_size + row for row in rows]
        prompts = [chosen[row].tokens for row in rows]
        for row, prompt, out in zip(rows, prompts, self.writer.generate(prompts, settings, seeds), strict=True):
            first, last = len(prompt), len(prompt) + len(out.tokens)
            episodes.tokens[row, :last] = torch.tensor(prompt + out.tokens)
            episodes.logprobs[row, first - 1 : last - 1] = torch.tensor(out.logprobs)
            episodes.prompt_lengths[row], episodes.lengths[row] = first, last
            episodes.ended[row] = int(out.finish_reason == "end_of_text")
        share(episodes.written, self.writer.dims)

    def _learnable(self) -> dict[str, float]:
        """Advantages and returns from what was collected, and figures of the iteration."""
        episodes, ppo, mask = self.episodes, self.ppo, self.episodes.mask
        coefficient = episodes.kl_coefficient.item()
        penalised = episodes.scores - ppo.missing_eos_penalty * (1 - episodes.ended)
        rewards = ppo_math.token_rewards(penalised, episodes.logprobs, episodes.reference, mask, coefficient)
        if ppo.whiten_rewards:
            rewards = ppo_math.whiten(rewards, mask, shift_mean=False)
        advantages, returns = ppo_math.advantages_and_returns(rewards, episodes.values, mask, ppo.gamma, ppo.gae_lambda)
        explained = ppo_math.explained_variance(episodes.values, returns, mask)
        episodes.advantages.copy_(ppo_math.whiten(advantages, mask) if ppo.whiten_advantages else advantages)
        episodes.returns.copy_(returns)
        kl = ((episodes.logprobs - episodes.reference) * mask).sum(1).mean().item()
        if ppo.kl_target is not None:
            count = ppo.rollout_batch_size
            adapted = ppo_math.adapted_kl_coefficient(coefficient, kl, ppo.kl_target, count, ppo.kl_horizon)
            episodes.kl_coefficient.fill_(adapted)
        return {
            "score": episodes.scores.mean().item(),
            "reward": (rewards * mask).sum(1).mean().item(),
            "kl": kl,
            "kl_coefficient": coefficient,
            "answer_tokens": mask.sum(1).mean().item(),
            "end_rate": episodes.ended.double().mean().item(),
            "explained_variance": explained,
        }

    def _texts(self, chosen: list[Prompt]) -> list[dict[str, Any]]:
        episodes, tokenizer = self.episodes, self.writer.tokenizer
        return [
            {
                "iteration": int(episodes.iteration),
                "prompt": chosen[row].messages[-1].content,
                "text": answer(episodes, row, tokenizer),
                "score": episodes.scores[row].item(),
                "ended": bool(episodes.ended[row]),
            }
            for row in range(min(SAMPLES, len(chosen)))
        ]

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
