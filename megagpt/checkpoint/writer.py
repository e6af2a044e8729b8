"""A rank's part of a save: one file, which a background thread writes."""

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from megagpt.checkpoint.files import CHUNK, FileInfo, write_file
from megagpt.checkpoint.format import StoredShard, header, memory, rank_file
from megagpt.errors import CheckpointError
from megagpt.parallel.shards import Shard


class RankWriter:
    """Writes the shards and the rank tensors of one rank to its file in `folder`, in a background thread.

    Without `copy` the tensors are read while the file is written, so they must not change until `done`.
    Raises CheckpointError when a tensor cannot be stored.
    """

    def __init__(
        self, folder: Path, rank: int, shards: Iterable[Shard], rank_tensors: dict[str, torch.Tensor], copy: bool
    ):
        shared = [(StoredShard.of(shard), shard.data) for shard in shards]
        own = [(StoredShard.of(Shard.whole(name, data), private=True), data) for name, data in rank_tensors.items()]
        kept = [item for item in shared + own if item[0].numel]
        kept += {entry.name: (entry, data) for entry, data in shared + own if 0 in entry.global_shape}.values()
        kept.sort(key=lambda item: -item[0].torch_dtype.itemsize)  # aligns every tensor in the file; the sort is stable
        self.path = folder / rank_file(rank)
        self.entries = tuple(entry for entry, _ in kept)
        self.tensors = [data.detach().to("cpu", copy=True) if copy else data.detach() for _, data in kept]
        try:
            self.header = header(self.entries)
        except ValueError as error:
            raise CheckpointError(f"rank {rank} cannot save: {error}") from error
        self.size = len(self.header) + sum(entry.nbytes for entry in self.entries)
        self.info: FileInfo | None = None
        self.error: Exception | None = None
        self.error_time = 0.0
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._write, name="checkpoint-writer", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the file is complete or writing it has failed."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Waits until done, at most `seconds` (None: without limit)."""
        self._thread.join(seconds)

    def cancel(self, seconds: float | None = None) -> None:
        """Cancels writing and waits until the thread has ended, at most `seconds` (None: without limit)."""
        self._cancelled.set()
        self.wait(seconds)

    def _write(self) -> None:
        try:
            if self.entries:
                self.info = write_file(self.path, self._chunks(), self.size, lambda: not self._cancelled.is_set())
        except Exception as error:  # `Checkpointer.poll` raises it on all ranks
            self.error, self.error_time = error, time.time()
        finally:
            self.tensors = []

    def _chunks(self) -> Iterator[memoryview]:
        """The bytes of the file. Tensors that are contiguous and on the CPU are not copied."""
        yield memoryview(self.header)
        for tensor in self.tensors:
            data = memory(tensor.cpu().contiguous())
            for start in range(0, len(data), CHUNK):
                yield data[start : start + CHUNK]
