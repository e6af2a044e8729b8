"""Compares tensors that several ranks hold, bit for bit: a difference means silent damage of memory or of a step.

Data-parallel ranks hold the same parameters. Tensor-parallel ranks hold the same norms and other parameters that are
not split. Two pipeline stages hold the same tied embeddings. With ZeRO stage 3 no parameter is held twice.
"""

import socket
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist

from megagpt.errors import ReplicasDiverged
from megagpt.parallel.shards import Shard

CHUNK = 1 << 22
"""Number of elements that are hashed at a time: hashing needs 16 bytes of memory per element."""

SHOWN = 8
"""Most tensors that an error names."""


def fingerprint(data: torch.Tensor) -> torch.Tensor:
    """A 64-bit hash of a tensor's bits, int64 scalar on its device.

    It is the sum of (2 i + 1) x_i modulo 2^64, where the integer x_i has the bits of element i. The sum is exact in any
    order of addition. It changes whenever a single element changes, because the factors are odd.
    """
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = data.detach().contiguous().view(-1).view(sizes[data.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    for start in range(0, bits.numel(), CHUNK):
        part = bits[start : start + CHUNK].to(torch.int64)
        total += (part * torch.arange(2 * start + 1, 2 * (start + len(part)), 2, device=data.device)).sum()
    return total


def fingerprints(shards: Iterable[Shard]) -> dict[str, int]:
    """{label: fingerprint} of every shard, with one copy to the host for each device."""
    by_device: dict[torch.device, dict[str, torch.Tensor]] = defaultdict(dict)
    for shard in shards:
        by_device[shard.data.device][shard.label] = fingerprint(shard.data)
    found: dict[str, int] = {}
    for hashes in by_device.values():
        found |= zip(hashes, torch.stack(list(hashes.values())).tolist(), strict=True)
    return found


class Replicas:
    """Finds once the shards that several ranks hold, and compares them when `check` is called."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        """Collective. shards: all shards of this rank, from `Engine.shards`."""
        self.group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self.labels: list[str] = []
        if self.group is None:
            return
        mine = (socket.gethostname(), [shard.label for shard in shards])
        held: list = [None] * dist.get_world_size()
        dist.all_gather_object(held, mine, self.group)
        self.hosts = [host for host, _ in held]
        copies = Counter(label for _, labels in held for label in set(labels))
        self.held = [[label for label in labels if copies[label] > 1] for _, labels in held]
        self.labels = self.held[dist.get_rank()]

    def check(self, shards: Iterable[Shard]) -> None:
        """Compare the values of `shards` with those on other ranks. Collective.

        Raises ReplicasDiverged on all ranks, with the names of ranks and tensors, if values differ.
        """
        if self.group is None or not any(self.held):
            return
        wanted = set(self.labels)
        hashes = fingerprints(shard for shard in shards if shard.label in wanted)
        vector = torch.zeros(max(map(len, self.held)), dtype=torch.int64)
        vector[: len(self.labels)] = torch.tensor([hashes[label] for label in self.labels], dtype=torch.int64)
        vectors = [torch.empty_like(vector) for _ in self.held]
        dist.all_gather(vectors, vector, group=self.group)
        values = defaultdict(dict)
        for rank, (labels, hashed) in enumerate(zip(self.held, vectors, strict=True)):
            for label, value in zip(labels, hashed.tolist(), strict=False):
                values[label][rank] = value
        if damaged := {label: odd for label, by_rank in values.items() if (odd := odd_ranks(by_rank))}:
            raise ReplicasDiverged(self._describe(damaged))

    def _describe(self, damaged: dict[str, list[int]]) -> str:
        by_ranks = defaultdict(list)
        for label, ranks in damaged.items():
            by_ranks[tuple(ranks)].append(label)
        parts = []
        for ranks, labels in by_ranks.items():
            named = " or ".join(f"rank {rank} on {self.hosts[rank]}" for rank in ranks)
            more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
            parts.append(f"{', '.join(sorted(labels)[:SHOWN])}{more} ({named})")
        return (
            f"replicas of {'; '.join(parts)} differ from the other ranks'. Tensors that must be equal were damaged"
            " without an error: test the memory of that device. The newest checkpoint was saved while all ranks agreed"
        )


def odd_ranks(values: dict[int, int]) -> list[int]:
    """Ranks whose hash differs from the majority's; all ranks if there is no majority; [] if all hashes are equal.

    values: {rank: hash}.
    """
    counts = Counter(values.values()).most_common(2)
    if len(counts) == 1:
        return []
    tied = counts[0][1] == counts[1][1]
    return [rank for rank, value in values.items() if tied or value != counts[0][0]]
