"""What scores an answer: a reward model, or a program that checks it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from megagpt.data.batch import Batch
from megagpt.data.tokenizer import Tokenizer
from megagpt.parallel.engine import Engine
from megagpt.rl.episodes import Episodes
from megagpt.rl.offload import on_device


class Reward(Protocol):
    """Scores whole answers."""

    def __call__(self, episodes: Episodes, rows: Tensor, checks: list[dict[str, Any] | None]) -> Tensor:
        """Scores, float32 [B], of the episodes `rows`, int64 [B]. Collective over the ranks of a replica.

        checks: what the record of each row's prompt says about right answers.
        """


class ModelReward:
    """A reward model's value at an answer's last token."""

    def __init__(self, engine: Engine, micro_batch_size: int, offload: bool) -> None:
        """`engine` has a scalar head and gives a value for every token (`ValueTask`)."""
        self.engine, self.micro_batch_size, self.offload = engine, micro_batch_size, offload

    def __call__(self, episodes: Episodes, rows: Tensor, checks: list[dict[str, Any] | None]) -> Tensor:
        """See `Reward`."""
        batches = batches_of(episodes, rows, self.micro_batch_size)
        with on_device(self.engine, self.offload):
            values = torch.cat(self.engine.outputs(iter(batches), len(batches)))
        return values.gather(1, episodes.lengths[rows, None] - 1).squeeze(1)


class CheckerReward:
    """What a program says about the answer's text."""

    def __init__(self, check: Callable[[dict[str, Any], str], float], tokenizer: Tokenizer) -> None:
        self.check, self.tokenizer = check, tokenizer

    def __call__(self, episodes: Episodes, rows: Tensor, checks: list[dict[str, Any] | None]) -> Tensor:
        """See `Reward`."""
        answers = [answer(episodes, row, self.tokenizer) for row in rows.tolist()]
        scores = [self.check(check, text) for check, text in zip(checks, answers, strict=True)]
        return torch.tensor(scores, dtype=torch.float32, device=rows.device)


def answer(episodes: Episodes, row: int | Tensor, tokenizer: Tokenizer) -> str:
    """The text of an episode's answer, without the token that ended it."""
    return tokenizer.decode(episodes.tokens[row, episodes.prompt_lengths[row] : episodes.lengths[row]].tolist())


def batches_of(episodes: Episodes, rows: Tensor, micro_batch_size: int) -> list[Batch]:
    """The episodes `rows` in micro-batches."""
    return [episodes.inputs(part) for part in rows.split(micro_batch_size)]
