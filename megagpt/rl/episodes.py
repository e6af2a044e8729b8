"""The episodes of one PPO iteration: responses to prompts, their log-probabilities, values, rewards and advantages."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.data.batch import Batch
from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.shards import Shard


@dataclass(frozen=True, kw_only=True)
class EpisodeBatch(Batch):
    """Episodes to learn from; `loss_mask` is 1 where the policy generated the label. New fields: float32 [B, S]."""

    logprobs: Tensor
    """Log-probabilities of the labels under the policy that generated them."""
    values: Tensor
    """The critic's values before the update, of the text up to and including each input token."""
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, kw_only=True)
class PretrainingBatch(Batch):
    """Text whose next-token loss is added to the loss of the episodes."""

    weight: float
    """Factor on the loss of each token. The step divides the sum by the number of tokens that the policy generated."""


class Episodes:
    """The episodes of one iteration, the same on every rank: N rows of T tokens, right-padded with zeros.

    All state is in tensors, which a checkpoint holds, so that a run can resume in the middle of an iteration.
    """

    def __init__(self, count: int, length: int, kl_coefficient: float, device: torch.device) -> None:
        """Allocate `count` episodes (N) of at most `length` tokens (T)."""
        shape = (count, length)
        self.iteration = torch.full((), -1, dtype=torch.int64, device=device)
        """Number of the iteration that generated the episodes, from 0; -1 before the first."""
        self.kl_coefficient = torch.full((), kl_coefficient, dtype=torch.float64, device=device)
        """Weight of the KL penalty in the rewards of the next iteration."""
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.prompt_lengths, self.lengths, self.finished = (
            torch.zeros(count, dtype=torch.int64, device=device) for _ in range(3)
        )
        """Int64 [N] each: length of the prompt, length of prompt and response, and 1 if the response ended with
        end-of-text, else 0."""
        self.scores = torch.zeros(count, device=device)
        """Score of each whole response from the reward model or checker, float32 [N]."""
        self.logprobs, self.reference, self.values, self.advantages, self.returns = (
            torch.zeros(shape, device=device) for _ in range(5)
        )
        """Float32 [N, T] each, aligned with labels: column t belongs to token t + 1. `logprobs` are under the policy,
        `reference` under the reference model."""

    def shards(self) -> Iterator[Shard]:
        """All tensors, as shards of a checkpoint."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield Shard.whole(f"episodes/{name}", value)

    @property
    def rollouts(self) -> list[Tensor]:
        """The tensors that generation fills; their first dimension is the episode."""
        return [self.tokens, self.prompt_lengths, self.lengths, self.finished, self.logprobs]

    def clear_rollouts(self) -> None:
        """Set all responses to zeros."""
        for value in self.rollouts:
            value.zero_()

    def rows_of(self, dims: ParallelDims) -> Tensor:
        """The rows, int64 [n], that this rank's replica generates or reads in the layout `dims`."""
        each = len(self.tokens) // dims.data_size
        return torch.arange(dims.data_rank * each, (dims.data_rank + 1) * each, device=self.tokens.device)

    @property
    def mask(self) -> Tensor:
        """Float32 [N, T]: 1 where the label is a token of the response."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        first, last = self.prompt_lengths - 1, self.lengths - 1
        return ((columns >= first[:, None]) & (columns < last[:, None])).float()

    def inputs(self, rows: Tensor) -> Batch:
        """The episodes of `rows` (int64 [B]) as a batch of next-token prediction."""
        tokens = self.tokens[rows]
        labels = torch.cat((tokens[:, 1:], tokens[:, :1] * 0), 1)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape).contiguous()
        return Batch(tokens, labels, self.mask[rows], positions)

    def batch(self, rows: Tensor) -> EpisodeBatch:
        """The episodes of `rows` (int64 [B]) with log-probabilities, values, advantages and returns."""
        fields = {name: getattr(self, name)[rows] for name in ("logprobs", "values", "advantages", "returns")}
        return EpisodeBatch(**vars(self.inputs(rows)), **fields)

    def micro_batches(self, rows: Tensor, size: int, replica: int, replicas: int) -> list[EpisodeBatch]:
        """This replica's share of a step's `rows` (int64 [n]), in micro-batches of `size`."""
        return [self.batch(rows[first : first + size]) for first in range(replica * size, len(rows), size * replicas)]
