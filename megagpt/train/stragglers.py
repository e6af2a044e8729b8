"""Finds ranks that are slower than the others.

Most times are equal on all ranks, because ranks wait for each other. The forward pass does not wait, so its time is
compared among the ranks of a pipeline stage, which do the same work.
"""

import logging
import socket
import time
from statistics import median_low

import torch
import torch.distributed as dist

from megagpt.config.schema import ReliabilityConfig
from megagpt.parallel.dims import ParallelDims

log = logging.getLogger(__name__)


class Stragglers:
    """Measures the time of this rank's forward passes in training and compares it with other ranks' at intervals.

    Evaluations and generated tokens are not timed, because replicas have different numbers of them, and because a
    device event for each token would be too expensive. Tensor-parallel ranks wait for each other within a forward pass,
    so a slow one is named together with its group.
    """

    def __init__(self, config: ReliabilityConfig, dims: ParallelDims, modules: list[torch.nn.Module]) -> None:
        """Collective. modules: this rank's parts of the model."""
        self.config, self.dims = config, dims
        self.group = dist.new_group(backend="gloo")
        self.hosts: list = [None] * dims.world_size
        dist.all_gather_object(self.hosts, socket.gethostname(), self.group)
        self._clock = _CudaClock() if torch.cuda.is_available() else _Clock()
        for module in modules:
            module.register_forward_pre_hook(lambda module, *_: self._clock.start() if module.training else None)
            module.register_forward_hook(lambda module, *_: self._clock.stop() if module.training else None)

    def check(self, step: int) -> list[int]:
        """Compare the times since the last comparison; log and return slow ranks. Collective."""
        times = [torch.zeros((), dtype=torch.float64) for _ in self.hosts]
        dist.all_gather(times, torch.tensor(self._clock.take(), dtype=torch.float64), group=self.group)
        seconds = [float(value) for value in times]
        slow = slow_ranks(seconds, self.dims.tensor_size * self.dims.data_size, self.config.straggler_factor)
        for rank, ratio in slow.items():
            if self.dims.rank == 0:
                log.warning(
                    "step %d: rank %d on %s is slow: its forward passes took %.2f s since the last comparison, %.1f x "
                    "the median of its pipeline stage",
                    step,
                    rank,
                    self.hosts[rank],
                    seconds[rank],
                    ratio,
                )
        return list(slow)


def slow_ranks(seconds: list[float], stage_size: int, factor: float) -> dict[int, float]:
    """{rank: time / median of its pipeline stage} for ranks slower than `factor` times that median.

    seconds: time of each rank, by rank. A pipeline stage is `stage_size` consecutive ranks. The lower median is used,
    so that one of two ranks can be slow.
    """
    slow = {}
    for first in range(0, len(seconds), stage_size):
        stage = seconds[first : first + stage_size]
        usual = median_low(stage)
        slow |= {first + i: value / usual for i, value in enumerate(stage) if usual > 0 and value > factor * usual}
    return slow


class _Clock:
    """Sums the times between `start` and `stop`."""

    def __init__(self) -> None:
        self._started = self._total = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._total += time.perf_counter() - self._started

    def take(self) -> float:
        """The sum in seconds; it starts anew from zero."""
        total, self._total = self._total, 0.0
        return total


class _CudaClock:
    """Like `_Clock`, but measures the GPU's time, because the GPU works asynchronously to this thread."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def start(self) -> None:
        self._record()

    def stop(self) -> None:
        self._record()

    def _record(self) -> None:
        self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[-1].record()

    def take(self) -> float:
        """The sum in seconds; it starts anew from zero."""
        events, self._events = self._events, []
        torch.cuda.synchronize()
        pairs = zip(events[::2], events[1::2], strict=True)
        return sum(start.elapsed_time(stop) for start, stop in pairs) / 1000
