"""Random micro-batches of each stage, with which `check_layouts.py` compares layouts with one rank."""

from collections.abc import Iterator
from dataclasses import fields, replace

import torch

from megagpt.config.schema import Config
from megagpt.data.batch import Batch
from megagpt.data.ranked_loader import RankedBatch
from megagpt.evaluate.layout_parity import Batches, RandomTokens
from megagpt.parallel.engine import Objective
from megagpt.rl.episodes import EpisodeBatch, PretrainingBatch
from megagpt.rl.objectives import PolicyObjective
from megagpt.train.objectives import LanguageModelObjective, RewardObjective

ANSWERS = 3
"""Number of answers to a prompt of `Rankings`."""


def demonstrations(config: Config) -> tuple[Objective, Batches]:
    """Stages `edit` and `sft`: packed conversations that are kept apart; a part of the tokens counts in the loss."""
    return LanguageModelObjective(), Conversations(config)


def rankings(config: Config) -> tuple[Objective, Batches]:
    """Stage `reward`: ranked answers to prompts."""
    return RewardObjective(), Rankings(config)


def episodes(config: Config) -> tuple[Objective, Batches]:
    """Stage `ppo`: the policy learns from episodes, and from text in the same step."""
    return PolicyObjective(config.ppo, config.model.vocab_size), Episodes(config)


class Conversations(RandomTokens):
    """Rows of two conversations, whose borders differ from row to row."""

    def of_samples(self, numbers: range) -> Iterator[Batch]:
        """See `RandomTokens.of_samples`."""
        batch = self.batch(numbers)
        length = batch.tokens.shape[1]
        borders = torch.tensor([1 + number % (length - 1) for number in numbers])[:, None]
        documents = (batch.position_ids >= borders).long()
        yield replace(batch, position_ids=batch.position_ids - documents * borders, document_ids=documents)


class Rankings(RandomTokens):
    """A sample is a prompt with its answers, one per row; some are ties."""

    def of_samples(self, numbers: range) -> Iterator[Batch]:
        """See `RandomTokens.of_samples`."""
        rows = range(numbers.start * ANSWERS, numbers.stop * ANSWERS)
        batch, length = self.batch(rows), self.config.model.sequence_length
        ends = torch.tensor([1 + row * 7 % (length - 1) for row in rows])
        prompts = torch.arange(len(rows)) // ANSWERS
        ranks = torch.tensor([row % ANSWERS if row % 7 else 0 for row in rows])
        scored = torch.nn.functional.one_hot(ends, length).float()
        yield RankedBatch(**_of(batch) | {"loss_mask": scored}, prompts=prompts, ranks=ranks)


class Episodes(RandomTokens):
    """A sample gives an episode, and a text."""

    def of_samples(self, numbers: range) -> Iterator[Batch]:
        """See `RandomTokens.of_samples`."""
        batch = self.batch(numbers)
        noise = [torch.randn(3, batch.tokens.shape[1], generator=torch.Generator().manual_seed(n)) for n in numbers]
        distance, advantages, values = torch.stack(noise, 1)
        uniform = -torch.tensor(self.config.model.vocab_size).log()
        learnt = {"logprobs": uniform + distance / 10, "values": values, "advantages": advantages, "returns": values}
        yield EpisodeBatch(**_of(batch), **learnt)
        yield PretrainingBatch(**_of(self.batch(range(10**6 + numbers.start, 10**6 + numbers.stop))), weight=0.5)


def _of(batch: Batch) -> dict[str, torch.Tensor | None]:
    return {field.name: getattr(batch, field.name) for field in fields(batch)}
