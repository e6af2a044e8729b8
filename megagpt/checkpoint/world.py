"""A group of ranks that exchange JSON values and fail together."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megagpt.errors import CheckpointError


class World:
    """A group of ranks that act together; this base class is a group of one rank."""

    rank: int = 0
    """This process's number."""
    size: int = 1
    """Number of processes."""

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's JSON value, in order of rank, on every rank."""
        return [json.loads(json.dumps(value))]  # the same conversion as between several ranks

    def lowest(self, value: int) -> int:
        """Returns the smallest of the ranks' values."""
        return value

    def broadcast(self, value: Any) -> Any:
        """Returns rank 0's JSON value on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Runs a block without collectives; if it raises on any rank, all ranks raise the earliest error.

        Raises: CheckpointError on every rank.
        """
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.fail_together(error)

    def fail_together(self, error: Exception | None, when: float | None = None) -> None:
        """Raises the earliest of the ranks' errors on all ranks as CheckpointError; returns when there is none.

        `when` is the Unix time of this rank's error; None means now.
        """
        reports = self.gather(None if error is None else {"time": when or time.time(), "message": describe(error)})
        failed = [(report["time"], rank, report["message"]) for rank, report in enumerate(reports) if report]
        if failed:
            _, rank, message = min(failed)
            raise CheckpointError(f"rank {rank}: {message}" if self.size > 1 else message) from error


class DistributedWorld(World):
    """The ranks of torch.distributed's default group. They communicate over gloo, independently of the device."""

    def __init__(self, timeout: timedelta | None = None):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo", timeout=timeout)

    def gather(self, value: Any) -> list[Any]:
        """See World.gather; values travel as JSON, not pickled."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self.group)
        padded = torch.zeros(max(int(n) for n in lengths), dtype=torch.uint8)
        padded[: len(data)] = data
        buffers = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(buffers, padded, group=self.group)
        return [json.loads(bytes(b[: int(n)].numpy())) for b, n in zip(buffers, lengths, strict=True)]

    def lowest(self, value: int) -> int:
        """See World.lowest."""
        tensor = torch.tensor([value])
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=self.group)
        return int(tensor)


def current_world(timeout: timedelta | None = None) -> World:
    """The ranks of this job: torch.distributed's default group if it is initialised, else only this process.

    Collective. timeout: limit of each collective; None is PyTorch's default.
    """
    return DistributedWorld(timeout) if dist.is_initialized() and dist.get_world_size() > 1 else World()


def describe(error: Exception) -> str:
    """One line about an error: the message of a CheckpointError, else type and message."""
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
