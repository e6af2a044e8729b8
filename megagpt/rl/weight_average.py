"""Exponential moving average of the policy's weights (InstructGPT, arXiv 2203.02155, appendix C.4)."""

import dataclasses
from collections.abc import Iterator

import torch

from megagpt.parallel.engine import Engine
from megagpt.parallel.shards import Shard

WEIGHTS, AVERAGE = "model/", "ema/"
"""Prefixes of tensor names in a checkpoint: the policy's weights, and their averages."""


class WeightAverage:
    """Exponential moving average, in float32, of the weights that this rank saves."""

    def __init__(self, engine: Engine, decay: float, device: torch.device | str) -> None:
        """Start from the current weights. device: where the averages are stored."""
        self.engine, self.decay, self.device = engine, decay, device
        self.restart()

    def restart(self) -> None:
        """Set the averages to the current weights."""
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
        """average = decay * average + (1 - decay) * weight."""
        for mean, shard in zip(self.shards, self._weights(), strict=True):
            mean.data.lerp_(shard.data.to(mean.data.device, torch.float32), 1 - self.decay)

    def _weights(self) -> Iterator[Shard]:
        return (shard for shard in self.engine.shards(for_saving=True) if shard.name.startswith(WEIGHTS))
