"""What models say about every token of the episodes: log-probabilities, values, scores."""

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.engine import Engine
from megagpt.rl.episodes import Episodes
from megagpt.rl.offload import on_device


class Scorer:
    """A model that gives a number for every token; each of its replicas reads its part of the episodes."""

    def __init__(self, engine: Engine, micro_batch_size: int, offload: bool) -> None:
        """`engine` gives [B, S] (`ValueObjective`, `LogProbObjective`); see `on_device` for `offload`."""
        self.engine, self.micro_batch_size, self.offload = engine, micro_batch_size, offload

    def __call__(self, episodes: Episodes) -> Tensor:
        """Float32 [N, T] for all episodes, on every rank the same bits. Collective over all ranks."""
        dims = self.engine.dims
        rows = episodes.rows_of(dims)
        batches = [episodes.inputs(part) for part in rows.split(self.micro_batch_size)]
        result = torch.zeros_like(episodes.logprobs)
        with on_device(self.engine, self.offload):
            result[rows] = torch.cat(self.engine.outputs(iter(batches), len(batches)))
        share([result], dims)
        return result


def share(values: list[Tensor], dims: ParallelDims) -> None:
    """Give every rank the rows of all replicas, in place; each has zeros where it has none. Collective."""
    if dims.world_size == 1:
        return
    speaks = dims.tensor_rank == 0 and dims.is_first_stage  # the other ranks of a replica have the same
    for value in values:
        if not speaks:
            value.zero_()
        dist.all_reduce(value)
