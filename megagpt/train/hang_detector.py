"""Finds hangs: a thread on every rank measures how long this rank and the next one have made no progress."""

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
"""Time between two checks, unless there are thousands of ranks. A hang is detected at most this long after the
time-out; finding the rank to blame takes several times this."""

LOOKS_PER_SECOND = 8192
"""Most checks per second of all ranks together: each sends three requests to a store that one processor serves."""

UNTIMED = ("tasks",)
"""Sections without a time-out: the time of an in-context task depends on its data. Ranks that stop in such a section
are still found by their heartbeat."""

SIGN_TICKS = 4
"""Number of checks in which every live rank must send a heartbeat."""

REPORT_TICKS = 20
"""Number of checks after which another rank may report a hang, because the first reporter has not."""


def tick_seconds(ranks: int) -> float:
    """Seconds between two checks of a rank, in a job of `ranks` ranks."""
    return max(TICK_SECONDS, ranks / LOOKS_PER_SECOND)


class HangDetector:
    """Watches the progress of this rank and the heartbeat of the next rank.

    Time in which this process was suspended does not count, so that a job can be suspended and resumed as a whole.
    """

    def __init__(
        self,
        config: ReliabilityConfig,
        progress: Progress,
        heartbeat: Heartbeat,
        post_mortem: PostMortem,
        stacks: Path,
    ) -> None:
        """stacks: the folder with the stacks of all ranks, for the report."""
        self.config, self.progress, self.heartbeat = config, progress, heartbeat
        self.post_mortem, self.stacks = post_mortem, stacks
        self.tick = tick_seconds(heartbeat.size)
        self._clock, self._seen, self._since = 0.0, progress.entered, 0.0
        self._found: float | None = None  # when this rank found a hang
        self._neighbour = (Beat.unheard(heartbeat.rank).number, 0.0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.heartbeat.beat(idle=0.0)  # the rank may stop before the thread's first check
        self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """Stop the thread, which tells the other ranks; wait for it at most `seconds` (None: without limit)."""
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
        except RuntimeError as error:  # the rank that serves the store has ended; the launcher ends this rank
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
        """Find the ranks that block the others, tell all ranks, and exit; do nothing if another rank reports."""
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
