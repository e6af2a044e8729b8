"""Base of loaders whose micro-batches a thread prepares while the model computes."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from megagpt.config.schema import Config
from megagpt.data.batch import Batch
from megagpt.errors import ConfigError

PREFETCHED = 2
"""Number of micro-batches prepared in advance."""


class PrefetchLoader:
    """Prepares micro-batches ahead of time. Subclasses make one from the number of its first sample."""

    config: Config

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._pending: dict[int, Future[Batch]] = {}

    @property
    def sample_tokens(self) -> int:
        """See `Loader.sample_tokens`."""
        return self.config.model.sequence_length

    def _train_batch(self, start: int) -> Batch:
        """Samples start .. + parallel.micro_batch_size - 1."""
        raise NotImplementedError

    def micro_batches(
        self, first_sample: int, global_batch_size: int, data_parallel_rank: int, data_parallel_size: int
    ) -> Iterator[Batch]:
        """The micro-batches of one rank in the step that trains on samples first_sample .. + global_batch_size - 1.

        Micro-batch m has samples first_sample + (m * data_parallel_size + data_parallel_rank) * micro_batch_size and
        the following. A background thread reads ahead, also into the next step. Raises ConfigError when the global
        batch is not a multiple of `parallel.micro_batch_size` x `data_parallel_size`.
        """
        size = self.config.parallel.micro_batch_size
        if global_batch_size % (size * data_parallel_size):
            raise ConfigError(
                f"a global batch of {global_batch_size} sequences cannot be shared by {data_parallel_size} "
                f"data-parallel ranks in micro-batches of {size} (parallel.micro_batch_size)"
            )
        count = global_batch_size // (size * data_parallel_size)
        starts = [
            first_sample + (m * data_parallel_size + data_parallel_rank) * size
            for m in range(count + PREFETCHED)  # the last PREFETCHED belong to the next step, whatever its size
        ]
        self._pending = {start: self._pending[start] for start in starts if start in self._pending}
        for m in range(count):
            for start in starts[m : m + 1 + PREFETCHED]:
                if start not in self._pending:
                    self._pending[start] = self._reader.submit(self._train_batch, start)
            yield self._pending.pop(starts[m]).result()
