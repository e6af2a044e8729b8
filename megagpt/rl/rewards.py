"""Scores of responses, from a reward model or from a program that checks them."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from megagpt.data.tokenizer import Tokenizer
from megagpt.rl.episodes import Episodes
from megagpt.rl.prompts import Prompt
from megagpt.rl.scoring import TokenModel, compute_scores


class Reward(Protocol):
    """Scores whole responses."""

    def __call__(self, episodes: Episodes, prompts: list[Prompt]) -> Tensor:
        """Scores of all episodes, float32 [N], on every rank. `prompts[i]` is the prompt of row i. Collective."""


class ModelReward:
    """Scores a response by a reward model's output at its last token."""

    def __init__(self, model: TokenModel) -> None:
        """model: a model with a scalar head."""
        self.model = model

    def __call__(self, episodes: Episodes, prompts: list[Prompt]) -> Tensor:
        """See `Reward`."""
        return compute_scores(self.model, episodes)


class CheckerReward:
    """Scores the text of a response with a program."""

    def __init__(self, check: Callable[[dict[str, Any], str], float], tokenizer: Tokenizer) -> None:
        """check: takes a prompt's `check` and the response's text, and returns the score."""
        self.check, self.tokenizer = check, tokenizer

    def __call__(self, episodes: Episodes, prompts: list[Prompt]) -> Tensor:
        """See `Reward`."""
        scores = [
            self.check(prompt.check, response_text(episodes, row, self.tokenizer)) for row, prompt in enumerate(prompts)
        ]
        return torch.tensor(scores, dtype=torch.float32, device=episodes.tokens.device)


def response_text(episodes: Episodes, row: int, tokenizer: Tokenizer) -> str:
    """The text of an episode's response, without the token that ended it."""
    first, last = int(episodes.prompt_lengths[row]), int(episodes.lengths[row])
    return tokenizer.decode(episodes.tokens[row, first:last].tolist())
