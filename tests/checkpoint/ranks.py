"""Ranks as threads of one process, fake layouts, and small runs for the checkpoint tests."""

import json
import threading
from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any

import torch

from megagpt.checkpoint import Shard, World

MANIFEST = {"run_id": "test", "config": {"seed": 1}, "layout": {"tp": 1}}


class _Exchange:
    def __init__(self, size: int):
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[Any] = [None] * size


class ThreadWorld(World):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, exchange: _Exchange):
        self.rank, self.size, self.exchange = rank, size, exchange

    def gather(self, value: Any) -> list[Any]:
        self.exchange.values[self.rank] = value
        self.exchange.barrier.wait()
        values = [json.loads(json.dumps(v)) for v in self.exchange.values]
        self.exchange.barrier.wait()
        return values

    def lowest(self, value: int) -> int:
        return min(self.gather(value))


def run_ranks(size: int, function: Callable[[World], Any]) -> list[Any]:
    """Calls function(world) on every rank; returns results, or raised exceptions, by rank."""
    exchange, results = _Exchange(size), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = function(ThreadWorld(rank, size, exchange))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Named tensors of several dtypes and shapes, a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model/layers.0.weight": torch.randn(12, 8, generator=generator),
        "model/layers.0.bias": torch.randn(12, generator=generator).bfloat16(),
        "model/scale": torch.randn((), generator=generator),
        "optimizer/exp_avg/layers.0.weight": torch.randn(12, 8, generator=generator),
        "optimizer/step": torch.randint(100, (1,), generator=generator),
        "model/cube": torch.randn(4, 6, 10, generator=generator),
    }


def cut(name: str, full: torch.Tensor, parts: int, layout: str) -> list[Shard]:
    """Cuts a tensor in `parts` shards: rows, columns (boxes on the first or last axis) or flat ranges."""
    if layout == "whole" or full.dim() == 0:
        return [Shard.whole(name, full.clone())]
    shape = tuple(full.shape)
    if layout == "flat":
        ends = [full.numel() * i // parts for i in range(parts + 1)]
        spans = pairwise(ends)
        zero = (0,) * len(shape)
        return [Shard(name, shape, zero, shape, (a, b), full.reshape(-1)[a:b].clone()) for a, b in spans]
    axis = 0 if layout == "rows" else len(shape) - 1
    shards, start = [], 0
    for data in full.tensor_split(parts, dim=axis):
        offset = tuple(start if i == axis else 0 for i in range(len(shape)))
        shards.append(Shard(name, shape, offset, tuple(data.shape), None, data.clone()))
        start += data.shape[axis]
    return shards


def share(full: dict[str, torch.Tensor], world: World, layout: str) -> list[Shard]:
    """A rank's shards of tensors cut in as many parts as there are ranks; leftovers go to rank 0."""
    cuts = [cut(name, tensor, world.size, layout) for name, tensor in full.items()]
    return [shard for shards in cuts for rank, shard in enumerate(shards) if rank % world.size == world.rank]


def blank(shards: list[Shard]) -> list[Shard]:
    """The same shards with their data overwritten."""
    for shard in shards:
        shard.data.fill_(1) if not shard.data.is_floating_point() else shard.data.fill_(float("nan"))
    return shards


def assert_holds(shards: list[Shard], full: dict[str, torch.Tensor]) -> None:
    """Asserts that the shards are, bit for bit, the parts of the tensors that they claim to be."""
    for shard in shards:
        box = full[shard.name][tuple(slice(o, o + n) for o, n in zip(shard.offset, shard.shape, strict=True))]
        expected = box if shard.flat is None else box.reshape(-1)[slice(*shard.flat)]
        assert expected.numel() == shard.numel <= prod(shard.shape)
        assert torch.equal(shard.data, expected), shard.label
