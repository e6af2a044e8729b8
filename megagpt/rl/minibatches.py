"""Which episodes a step of PPO learns from, and the pretraining text that comes with them (PPO-ptx)."""

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

_STREAM = 3  # streams 0 to 2 of (seed, number) are the corpora's


class Minibatches:
    """The minibatches of every iteration. Sample i is learnt from in iteration i // (rollout_batch_size * epochs)."""

    def __init__(self, config: Config, pretraining: PretrainLoader | None) -> None:
        """pretraining: gives text in rows of `ppo.row_length` tokens; None without corpora."""
        self.config, self.pretraining = config, pretraining

    def iteration_of(self, first_sample: int) -> int:
        """The iteration whose episodes the step from `first_sample` on learns from, from 0."""
        return first_sample // (self.config.ppo.rollout_batch_size * self.config.ppo.epochs)

    def rows(self, first_sample: int, count: int) -> Tensor:
        """Rows of the iteration's episodes, int64 [count], that the step from `first_sample` on learns from.

        Every epoch takes all rows, in an order of its own. Raises ConfigError for a step that is in two epochs.
        """
        ppo = self.config.ppo
        epoch, start = divmod(first_sample, ppo.rollout_batch_size)  # epochs are counted over all iterations
        if start + count > ppo.rollout_batch_size:
            raise ConfigError(
                f"a step of {count} episodes from number {start} on does not fit an iteration of "
                f"{ppo.rollout_batch_size}: make ppo.rollout_batch_size a multiple of optim.global_batch_size"
            )
        order = permutation(ppo.rollout_batch_size, self.config.seed, epoch, _STREAM)
        return torch.from_numpy(order[start : start + count].astype("int64"))

    def of_policy(self, episodes: Episodes, rows: Tensor, first_sample: int, dims: ParallelDims) -> Iterator[Batch]:
        """This replica's micro-batches for the policy: each of episodes is followed by `ppo.ptx_ratio` of text."""
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
        """The step's text, and the weight of its tokens, which makes them a mean times `ppo.ptx_coefficient`."""
        ppo = self.config.ppo
        if self.pretraining is None or not ppo.ptx_coefficient:
            return None, 0.0
        count, chosen = len(rows) * ppo.ptx_ratio, episodes.mask[rows].sum().item()
        texts = self.pretraining.micro_batches(first_sample * ppo.ptx_ratio, count, dims.data_rank, dims.data_size)
        return texts, ppo.ptx_coefficient * chosen / (count * ppo.row_length)
