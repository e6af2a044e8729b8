"""What scores an answer: a reward model, or a program that checks it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from megagpt.data.tokenizer import Tokenizer
from megagpt.rl.episodes import Episodes
from megagpt.rl.scoring import Scorer


class Reward(Protocol):
    """Scores whole answers."""

    def __call__(self, episodes: Episodes, checks: list[dict[str, Any] | None]) -> Tensor:
        """Scores of all episodes, float32 [N], on every rank. Collective over all ranks.

        checks: what the record of each episode's prompt says about right answers.
        """


class ModelReward:
    """A reward model's value at an answer's last token."""

    def __init__(self, scorer: Scorer) -> None:
        """`scorer` has a model with a scalar head."""
        self.scorer = scorer

    def __call__(self, episodes: Episodes, checks: list[dict[str, Any] | None]) -> Tensor:
        """See `Reward`."""
        return self.scorer(episodes).gather(1, episodes.lengths[:, None] - 1).squeeze(1)


class CheckerReward:
    """What a program says about the answer's text."""

    def __init__(self, check: Callable[[dict[str, Any], str], float], tokenizer: Tokenizer) -> None:
        self.check, self.tokenizer = check, tokenizer

    def __call__(self, episodes: Episodes, checks: list[dict[str, Any] | None]) -> Tensor:
        """See `Reward`."""
        answers = [answer(episodes, row, self.tokenizer) for row in range(len(checks))]
        scores = [self.check(check, text) for check, text in zip(checks, answers, strict=True)]
        return torch.tensor(scores, dtype=torch.float32, device=episodes.tokens.device)


def answer(episodes: Episodes, row: int, tokenizer: Tokenizer) -> str:
    """The text of an episode's answer, without the token that ended it."""
    return tokenizer.decode(episodes.tokens[row, episodes.prompt_lengths[row] : episodes.lengths[row]].tolist())
