"""The prompts of every iteration of PPO."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from megagpt.config.schema import PPOConfig
from megagpt.data.chat import Message, chat_prompt
from megagpt.data.conversations import Conversation
from megagpt.data.packed import permutation
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user's turn; the policy generates the response."""

    messages: tuple[Message, ...]
    tokens: list[int]
    check: dict[str, Any] | None
    """The record's field `check`, which says how to check a response (`ppo.reward=checker`); else None."""


def read_prompts(tokenizer: Tokenizer, conversations: Sequence[Conversation], ppo: PPOConfig) -> list[Prompt]:
    """Each conversation without its last response, unless longer than `ppo.max_prompt_tokens`.

    Raises DataError when a conversation has no user's turn to respond to or no `check` although `ppo.reward` is
    checker, or when no prompt is left.
    """
    prompts, too_long = [], 0
    for conversation in conversations:
        messages = conversation.messages
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1].role != "user":
            raise DataError(f"{conversation.place}: the conversation has no user's turn to answer: {messages!r:.200}")
        check = conversation.extra.get("check")
        if ppo.reward == "checker" and not isinstance(check, dict):
            raise DataError(
                f'{conversation.place}: ppo.reward is checker, but this record has no "check": '
                f"{messages[-1].content!r:.200}"
            )
        tokens = chat_prompt(tokenizer, messages)
        if len(tokens) <= ppo.max_prompt_tokens:
            prompts.append(Prompt(messages, tokens, check))
        else:
            too_long += 1
    if too_long:
        log.warning(
            "%d of %d prompts are left out: longer than ppo.max_prompt_tokens (%d)",
            too_long,
            len(conversations),
            ppo.max_prompt_tokens,
        )
    if not prompts:
        raise DataError(
            f"none of the {len(conversations)} prompts in data.conversations has at most ppo.max_prompt_tokens "
            f"({ppo.max_prompt_tokens}) tokens: add shorter conversations, or raise ppo.max_prompt_tokens"
        )
    return prompts


class PromptOrder:
    """Assigns prompts to iterations: each prompt once per epoch, in a random order that depends on seed and epoch."""

    def __init__(self, prompts: list[Prompt], count: int, seed: int) -> None:
        """count: number of prompts in one iteration."""
        self.prompts, self.count = prompts, count
        self._order = lru_cache(maxsize=2)(partial(permutation, len(prompts), seed))

    def of_iteration(self, iteration: int) -> list[Prompt]:
        """The prompts of an iteration; iterations count from 0."""
        places = (divmod(iteration * self.count + row, len(self.prompts)) for row in range(self.count))
        return [self.prompts[self._order(epoch)[place]] for epoch, place in places]
