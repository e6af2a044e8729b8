"""Watches every rank while it trains, and ends a job that hangs.

The first rank to see a hang announces it. All ranks dump their stacks and exit; a stuck rank is ended by another rank
on its host. The launcher then restarts the job. Ranks send heartbeats (`heartbeat.py`); a thread checks them
(`hang_detector.py`), finds the ranks to blame (`diagnosis.py`) and ends the job (`post_mortem.py`).
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from megagpt.config.schema import ReliabilityConfig
from megagpt.parallel import launch
from megagpt.train.hang_detector import HangDetector
from megagpt.train.heartbeat import Heartbeat, Progress
from megagpt.train.post_mortem import GRACE_SECONDS, PostMortem

T = TypeVar("T")

TIMES_LONGER = 2
"""Collectives wait this many times the longest time-out, because NCCL counts from the time of queueing."""

FAREWELL_SECONDS = 10.0
"""How long a failed rank waits for its watchdog, which may be about to end the job because of a hang."""


def longest_timeout(config: ReliabilityConfig) -> float:
    """The longest of the watchdog's time-outs, in seconds."""
    return max(getattr(config, item.name) for item in fields(config) if item.name.endswith("_timeout"))


class Watchdog:
    """Records this rank's current section of a step and, as a context manager, watches the section's time-out.

    All ranks must enter and leave these contexts in the same order, one at a time.
    """

    def __init__(self, config: ReliabilityConfig, run_dir: Path) -> None:
        """The stacks of a job that hangs go to `run_dir`/stacks."""
        self.config, self.run_dir = config, run_dir
        self.progress = Progress()
        self._phase: str | None = None
        self._detector: HangDetector | None = None
        self._post_mortem: PostMortem | None = None

    def enter(self, section: str) -> None:
        """Record that this rank has reached `section`: load, forward, backward or optimizer.

        Within a phase and in the first step the section stays the same, and only the progress is recorded.
        """
        while self._post_mortem and self._post_mortem.ending:  # a rank that is being ended must not train on
            time.sleep(GRACE_SECONDS)
        self.progress.section = self._phase or ("start" if self.progress.first_step else section)
        self.progress.entered += 1

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Watch a block as one phase (save, evaluation, tasks, or a phase of PPO), whatever sections it enters."""
        before, section = self._phase, self.progress.section
        self._phase = phase
        self.enter(phase)
        try:
            yield
        finally:
            self._phase = before
            self.enter(section)

    def first_step_done(self) -> None:
        """From now on use each section's own time-out."""
        self.progress.first_step = False

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield `batches`; waiting for each counts as section load."""
        self.enter("load")
        for batch in batches:
            self.enter("forward")
            yield batch
            self.enter("load")

    def observe(self, modules: list[torch.nn.Module]) -> None:
        """Enter sections forward and backward when the modules are called."""
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self.enter("forward"))
            module.register_forward_hook(lambda *_: self.enter("backward"))

    def __enter__(self) -> "Watchdog":
        stacks = self.run_dir / "stacks"
        rank = dist.get_rank()
        self._post_mortem = PostMortem(rank, stacks / f"rank_{rank:05d}.txt")
        heartbeat = Heartbeat.of_this_rank(self.progress)
        self._detector = HangDetector(self.config, self.progress, heartbeat, self._post_mortem, stacks)
        self._optimizer_hook = register_optimizer_step_pre_hook(lambda *_: self.enter("optimizer"))
        launch.wait_at_least(TIMES_LONGER * longest_timeout(self.config))
        self._detector.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._detector.stop(FAREWELL_SECONDS if kind else None)  # after a failure, the store may not answer
        self._post_mortem.close()
        self._optimizer_hook.remove()
        self._detector = self._post_mortem = None
