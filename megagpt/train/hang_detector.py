"""Finds hangs: a thread on every rank sees how long nothing has moved, here and on the next rank."""

import logging
import math
import threading
import time
from dataclasses import asdict
from pathlib import Path

from megagpt.config.schema import ReliabilityConfig
from megagpt.train.diagnosis import report
from megagpt.train.heartbeat import Beat, Heartbeat, Progress
from megagpt.train.post_mortem import Hang, PostMortem

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
"""Time between two looks, unless there are thousands of ranks. Detection takes this much longer than the time-out, and
naming a few times this."""

LOOKS_PER_SECOND = 8192
"""Looks of all ranks together, at most: each is three requests to a store that one processor serves."""

UNTIMED = ("tasks",)
"""Sections that take as long as they take: what a task in context costs depends on its data. Ranks that stop are still
found by their heartbeat."""

SIGN_TICKS = 4
"""Looks in which every rank that is alive gives a sign."""

REPORT_TICKS = 20
"""Looks after which another rank may report a hang: the one that was to do so has not."""


def tick_seconds(ranks: int) -> float:
    """Seconds between two looks of each of so many ranks."""
    return max(TICK_SECONDS, ranks / LOOKS_PER_SECOND)


class HangDetector:
    """Watches the progress of this rank, and the heartbeat of the next one.

    Time in which this process was stopped does not count, so that a job that was suspended as a whole goes on.
    """

    def __init__(
        self,
        config: ReliabilityConfig,
        progress: Progress,
        heartbeat: Heartbeat,
        post_mortem: PostMortem,
        stacks: Path,
    ) -> None:
        """stacks: the folder of all ranks' stacks, to be named in the report."""
        self.config, self.progress, self.heartbeat = config, progress, heartbeat
        self.post_mortem, self.stacks = post_mortem, stacks
        self.tick = tick_seconds(heartbeat.size)
        self._clock, self._seen, self._since = 0.0, progress.entered, 0.0
        self._found: float | None = None  # when this rank found a hang
        self._neighbour = (Beat.unheard(heartbeat.rank).number, 0.0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self.heartbeat.beat(idle=0.0)  # a rank may stop before its thread has looked once
        self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """Watch no longer, and tell the others; wait for that at most this long."""
        self._done.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        last = time.monotonic()
        try:
            while not self._done.wait(self.tick):
                now = time.monotonic()
                self._clock += min(now - last, 2 * self.tick)
                last = now
                self._look()
            self.heartbeat.beat(self._idle(), left=True)
        except RuntimeError as error:  # the rank that served the store is gone: the launcher ends this rank
            log.debug("the watchdog has lost its store: %s", error)

    def _idle(self) -> float:
        """Seconds since this rank entered its section."""
        if self.progress.entered != self._seen:
            self._seen, self._since = self.progress.entered, self._clock
        return self._clock - self._since

    def _look(self) -> None:
        section, idle = self.progress.section, self._idle()
        self.heartbeat.beat(idle)
        if hang := self.heartbeat.announced():
            self.post_mortem.end(Hang(**hang))
        name = f"{section}_timeout"
        limit = math.inf if section in UNTIMED else getattr(self.config, name)
        if self.progress.first_step and self.config.start_timeout > limit:
            name, limit = "start_timeout", self.config.start_timeout
        if idle > limit:
            self._report(f"no progress in {section} for {idle:.0f} s (reliability.{name}={limit:g})")
        if self.heartbeat.size > 1:
            self._look_at_neighbour((self.heartbeat.rank + 1) % self.heartbeat.size)

    def _look_at_neighbour(self, rank: int) -> None:
        beat, limit = self.heartbeat.last_beat(rank), max(self.config.heartbeat_timeout, 2 * self.tick)
        if beat.number != self._neighbour[0] or beat.left:
            self._neighbour = (beat.number, self._clock)
        elif self._clock - self._neighbour[1] > limit:
            self._report(f"rank {rank} gave no sign of life for {limit:g} s (reliability.heartbeat_timeout)")

    def _report(self, reason: str) -> None:
        """Find out who holds the others up, tell all ranks, and end; unless another rank is doing so."""
        self._found = self._clock if self._found is None else self._found
        if not self.heartbeat.may_report(int((self._clock - self._found) / (REPORT_TICKS * self.tick))):
            return
        before = [beat.number for beat in self.heartbeat.last_beats()]
        for _ in range(SIGN_TICKS):
            time.sleep(self.tick)
            self.heartbeat.beat(self._idle())
        beats = [beat for beat in self.heartbeat.last_beats() if not beat.left]
        silent = {beat.rank for beat in beats if beat.number == before[beat.rank]}
        text = f"step {self.progress.step}: {report(reason, beats, silent)}. Stacks of all ranks: {self.stacks}"
        hang = self.heartbeat.announce(asdict(Hang.of(text, beats, silent, finder=self.heartbeat.rank)))
        self.post_mortem.end(Hang(**hang))
