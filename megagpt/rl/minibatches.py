"""Selects the episodes of each PPO step, and the pretraining text that is mixed in (PPO-ptx, arXiv 2203.02155)."""

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor

from megagpt.config.schema import Config
from megagpt.data.batch import Batch
from megagpt.data.loader import PretrainLoader
from megagpt.data.packed import permutation
from megagpt.errors import ConfigError
from megagpt.parallel.dims import ParallelDims
from megagpt.rl.episodes import Episodes, PretrainingBatch

_STREAM = 3  # the corpora use the random streams 0 to 2 of (seed, number)


class Minibatches:
    """The minibatches of every iteration. Sample i belongs to iteration i // (rollout_batch_size * epochs)."""

    def __init__(self, config: Config, pretraining: PretrainLoader | None) -> None:
        """pretraining: loader of text in rows of `ppo.row_length` tokens; None without corpora."""
        self.config, self.pretraining = config, pretraining

    def iteration_of(self, first_sample: int) -> int:
        """Number, from 0, of the iteration whose episodes are used by the step that starts at `first_sample`."""
        return first_sample // (self.config.ppo.rollout_batch_size * self.config.ppo.epochs)

    def rows(self, first_sample: int, count: int) -> Tensor:
        """Rows of the iteration's episodes, int64 [count], for the step that starts at `first_sample`.

        Every epoch takes all rows in a new random order. Raises ConfigError for a step that spans two epochs.
        """
        ppo = self.config.ppo
        epoch, start = divmod(first_sample, ppo.rollout_batch_size)  # epochs are counted over all iterations
        if start + count > ppo.rollout_batch_size:
            raise ConfigError(
                f"a step of {count} episodes, starting at episode {start}, exceeds the iteration's "
                f"{ppo.rollout_batch_size} episodes: make ppo.rollout_batch_size a multiple of optim.global_batch_size"
            )
        order = permutation(ppo.rollout_batch_size, self.config.seed, epoch, _STREAM)
        return torch.from_numpy(order[start : start + count].astype("int64"))

    def of_policy(self, episodes: Episodes, rows: Tensor, first_sample: int, dims: ParallelDims) -> Iterator[Batch]:
        """This replica's micro-batches for the policy: after each one of episodes come `ppo.ptx_ratio` of text."""
        ppo, size = self.config.ppo, self.config.parallel.micro_batch_size
        texts, weight = self._pretraining(episodes, rows, first_sample, dims)
        for batch in episodes.micro_batches(rows, size, dims.data_rank, dims.data_size):
            yield batch
            for _ in range(ppo.ptx_ratio if texts else 0):
                text = next(texts)
                yield PretrainingBatch(**{f.name: getattr(text, f.name) for f in fields(text)}, weight=weight)

    def _pretraining(
        self, episodes: Episodes, rows: Tensor, first_sample: int, dims: ParallelDims
    ) -> tuple[Iterator[Batch] | None, float]:
        """The step's text, and the weight of its tokens.

        With this weight the text adds its mean loss per token, times `ppo.ptx_coefficient`, to the step's loss.
        """
        ppo = self.config.ppo
        if self.pretraining is None or not ppo.ptx_coefficient:
            return None, 0.0
        count, chosen = len(rows) * ppo.ptx_ratio, episodes.mask[rows].sum().item()
        texts = self.pretraining.micro_batches(first_sample * ppo.ptx_ratio, count, dims.data_rank, dims.data_size)
        return texts, ppo.ptx_coefficient * chosen / (count * ppo.row_length)
