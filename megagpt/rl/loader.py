"""Batches of episodes for the training loop, each iteration collected when its first batch is asked for."""

from collections.abc import Iterator
from dataclasses import fields

import torch

from megagpt.config.schema import Config
from megagpt.data.batch import Batch
from megagpt.data.loader import PretrainLoader
from megagpt.data.packed import Split, permutation
from megagpt.errors import ConfigError
from megagpt.rl.episodes import PretrainingBatch
from megagpt.rl.rollouts import Collector

_STREAM = 3  # streams 0 to 2 of (seed, number) are the corpora's


class EpisodeLoader:
    """Every batch of a run of PPO. Sample i is learnt from in iteration i // (rollout_batch_size * epochs).

    Every micro-batch of episodes is followed by `ppo.ptx_ratio` of pretraining text, in rows of the same length.
    """

    def __init__(self, config: Config, collector: Collector, pretraining: PretrainLoader | None) -> None:
        """`pretraining` gives the text, in rows of `ppo.row_length` tokens; None without corpora."""
        self.config, self.collector, self.pretraining = config, collector, pretraining
        self.tokenizer = collector.writer.tokenizer
        self.sample_tokens = config.ppo.row_length

    def micro_batches(
        self, first_sample: int, global_batch_size: int, data_parallel_rank: int, data_parallel_size: int
    ) -> Iterator[Batch]:
        """See `Loader.micro_batches`."""
        ppo, size = self.config.ppo, self.config.parallel.micro_batch_size
        episodes = self.collector.episodes
        iteration, place = divmod(first_sample, ppo.rollout_batch_size * ppo.epochs)
        epoch, start = divmod(place, ppo.rollout_batch_size)
        if start + global_batch_size > ppo.rollout_batch_size:
            raise ConfigError(
                f"a step of {global_batch_size} episodes from number {start} on does not fit an iteration of "
                f"{ppo.rollout_batch_size}: make ppo.rollout_batch_size a multiple of optim.global_batch_size"
            )
        if int(episodes.iteration) != iteration:
            self.collector.collect(iteration)
        order = permutation(ppo.rollout_batch_size, self.config.seed, iteration * ppo.epochs + epoch, _STREAM)
        rows = torch.from_numpy(order[start : start + global_batch_size].astype("int64")).to(episodes.tokens.device)
        episodes.step = rows.tolist()
        texts, weight = self._pretraining(first_sample, len(rows), data_parallel_rank, data_parallel_size, rows)
        for batch in episodes.micro_batches(rows, size, data_parallel_rank, data_parallel_size):
            yield batch
            for _ in range(ppo.ptx_ratio if texts else 0):
                text = next(texts)
                yield PretrainingBatch(**{f.name: getattr(text, f.name) for f in fields(text)}, weight=weight)

    def _pretraining(
        self, first_sample: int, count: int, rank: int, replicas: int, rows: torch.Tensor
    ) -> tuple[Iterator[Batch] | None, float]:
        """The step's text, and the weight of its tokens, which makes them a mean times `ppo.ptx_coefficient`."""
        if self.pretraining is None or not self.config.ppo.ptx_coefficient:
            return None, 0.0
        ratio, chosen = self.config.ppo.ptx_ratio, self.collector.episodes.mask[rows].sum().item()
        texts = self.pretraining.micro_batches(first_sample * ratio, count * ratio, rank, replicas)
        return texts, self.config.ppo.ptx_coefficient * chosen / (count * ratio * self.config.ppo.row_length)

    def evaluation_batches(
        self, split: Split, max_tokens: int | None, data_parallel_rank: int = 0, data_parallel_size: int = 1
    ) -> Iterator[Batch]:
        """Held-out pretraining text, which is also measured where it is not learnt; none without corpora."""
        if self.pretraining is not None:
            yield from self.pretraining.evaluation_batches(split, max_tokens, data_parallel_rank, data_parallel_size)

    def evaluation_bytes(self, split: Split, max_tokens: int | None) -> int:
        """Number of UTF-8 bytes of the text of `evaluation_batches` on all ranks together."""
        return 0 if self.pretraining is None else self.pretraining.evaluation_bytes(split, max_tokens)
