"""The running mean of the policy's weights, which InstructGPT kept beside it (arXiv 2203.02155, C.4)."""

import dataclasses
from collections.abc import Iterator

import torch

from megagpt.parallel.engine import Engine
from megagpt.parallel.shards import Shard

WEIGHTS, AVERAGE = "model/", "ema/"
"""Beginnings of the names of the policy's weights, and of their running means."""


class WeightAverage:
    """An exponential moving average, in float32, of the weights that this rank saves."""

    def __init__(self, engine: Engine, decay: float, device: torch.device | str) -> None:
        """Begin with the weights as they are. device: where the averages are kept."""
        self.engine, self.decay, self.device = engine, decay, device
        self.restart()

    def restart(self) -> None:
        """Begin anew with the weights as they are."""
        self.shards = [
            dataclasses.replace(
                shard,
                name=AVERAGE + shard.name.removeprefix(WEIGHTS),
                data=shard.data.float().to(self.device, copy=True),
            )
            for shard in self._weights()
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights."""
        for mean, shard in zip(self.shards, self._weights(), strict=True):
            mean.data.lerp_(shard.data.to(mean.data.device, torch.float32), 1 - self.decay)

    def _weights(self) -> Iterator[Shard]:
        return (shard for shard in self.engine.shards(for_saving=True) if shard.name.startswith(WEIGHTS))
