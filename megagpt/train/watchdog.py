"""Ends ranks that hang: from a thread on every rank that sees how long nothing has moved, here and on a neighbour.

Each rank writes a sign of life into the store that the ranks met in, and reads that of the next rank, so that a stopped
rank is noticed however many there are. Who finds a hang says so in the store; all ranks then dump the stacks of their
threads, those that cannot are made to by a rank on the same machine, and all end, for the launcher to start them anew.
"""

import faulthandler
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from megagpt.config.schema import ReliabilityConfig
from megagpt.errors import HUNG
from megagpt.parallel import launch
from megagpt.train.diagnosis import Beat, began, main_frame, report, this_process

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK_SECONDS = 0.5
"""Time between two looks. Detection takes this much longer than the time-out, and naming a few times this."""

SIGN_TICKS = 4
"""Looks in which every rank that is alive gives a sign."""

GRACE_SECONDS = 2.0
"""Time for every rank to dump its stacks before any ends."""

DUMP_SECONDS = 0.3
"""Time for a rank that was woken to dump its stacks."""

DUMP_SIGNAL = signal.SIGUSR2
"""What makes a rank dump its stacks although it runs no Python."""


class Watchdog:
    """Watches the sections of a step on every rank while used as a context; one context at a time on all ranks.

    Time in which this process was stopped does not count, so that a job that was suspended as a whole goes on.
    """

    CONTEXTS = itertools.count(1)
    """Numbers of this process's contexts, each of which has keys of its own in the store."""

    def __init__(self, config: ReliabilityConfig, run_dir: Path) -> None:
        self.config = config
        self.step = 0
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.path = run_dir / "stacks" / f"rank_{self.rank:05d}.txt"
        self.process = this_process()
        self._section, self._entered = "start", 0
        self._outer: str | None = "start"
        self._ending = False

    def enter(self, section: str) -> None:
        """Say that this rank has got as far as `section`: load, forward, backward, optimizer, evaluation or save.

        In the first step, in an evaluation and in a save it only says that something has moved.
        """
        while self._ending:  # a rank that is woken for its stacks must not train on, nor this one with it
            time.sleep(GRACE_SECONDS)
        self._section, self._entered = self._outer or section, self._entered + 1

    @contextmanager
    def within(self, section: str) -> Iterator[None]:
        """Watch a block as `section`, whatever it enters."""
        before, self._outer = self._outer, section
        self.enter(section)
        yield
        self._outer = before
        self.enter("optimizer")

    def first_step_done(self) -> None:
        """Watch sections by their own time-outs from now on."""
        self._outer = None

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield `batches`, watching how long each takes."""
        self.enter("load")
        for batch in batches:
            self.enter("forward")
            yield batch
            self.enter("load")

    def observe(self, modules: list[torch.nn.Module]) -> None:
        """Enter forward and backward as the parts of a model are called."""
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self.enter("forward"))
            module.register_forward_hook(lambda *_: self.enter("backward"))

    def __enter__(self) -> "Watchdog":
        self._store = launch.side_store(f"watchdog{next(self.CONTEXTS)}")
        self._file = _open(self.path)
        faulthandler.register(DUMP_SIGNAL, self._file, all_threads=True)
        self._optimizer = register_optimizer_step_pre_hook(lambda *_: self.enter("optimizer"))
        self._number, self._clock, self._seen, self._since = 0, 0.0, self._entered, 0.0
        self._neighbour = (Beat.unheard(self.rank).number, 0.0)
        self._give_sign()  # from here on: a rank may stop before its thread has looked once
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.unregister(DUMP_SIGNAL)
        self._optimizer.remove()
        self._file.close()

    def _run(self) -> None:
        last = time.monotonic()
        try:
            while not self._done.wait(TICK_SECONDS):
                now = time.monotonic()
                self._clock += min(now - last, 2 * TICK_SECONDS)
                last = now
                self._look()
            self._give_sign(left=True)
        except RuntimeError as error:  # who served the store is gone: the launcher ends this rank
            log.debug("the watchdog has lost its store: %s", error)

    def _look(self) -> None:
        if self._entered != self._seen:
            self._seen, self._since = self._entered, self._clock
        self._give_sign()
        if self._store.check(["hang"]):
            self._end(json.loads(self._store.get("hang")))
        section, idle = self._section, self._clock - self._since
        limit = getattr(self.config, f"{section}_timeout")
        if idle > limit:
            self._accuse(f"no progress in {section} for {idle:.0f} s (reliability.{section}_timeout={limit:g})")
        if self.size > 1:
            self._look_at_neighbour((self.rank + 1) % self.size)

    def _look_at_neighbour(self, rank: int) -> None:
        beat, limit = self._beat(rank), self.config.heartbeat_timeout
        if beat.number != self._neighbour[0] or beat.left:
            self._neighbour = (beat.number, self._clock)
        elif self._clock - self._neighbour[1] > limit:
            self._accuse(f"rank {rank} gave no sign of life for {limit:g} s (reliability.heartbeat_timeout)")

    def _give_sign(self, left: bool = False) -> None:
        frame, waiting = main_frame()
        self._number += 1
        idle = self._clock - self._since
        beat = Beat(
            self.rank, self._number, self.step, self._section, self._entered, idle, frame, waiting, self.process, left
        )
        self._store.set(f"beat{self.rank}", json.dumps(asdict(beat)))

    def _beat(self, rank: int) -> Beat:
        """The last sign of a rank. One that stops early may never have given any, and must not be overlooked."""
        if not self._store.check([f"beat{rank}"]):
            return Beat.unheard(rank)
        values = json.loads(self._store.get(f"beat{rank}"))
        return Beat(**values | {"process": tuple(values["process"])})

    def _accuse(self, reason: str) -> None:
        """Find out who holds the others up, and tell all. Who tells first is believed."""
        before = [self._beat(rank).number for rank in range(self.size)]
        for _ in range(SIGN_TICKS):
            time.sleep(TICK_SECONDS)
            self._give_sign()
        beats = [beat for beat in map(self._beat, range(self.size)) if not beat.left]
        silent = {beat.rank for beat in beats if beat.number == before[beat.rank]}
        hang = {
            "speaker": self.rank if 0 in silent else 0,  # the log file is rank 0's
            "text": f"step {self.step}: {report(reason, beats, silent)}. Stacks of all ranks: {self.path.parent}",
            "silent": [[beat.rank, *beat.process] for beat in beats if beat.rank in silent],
            # Of the ranks on each machine, the one that wakes and ends those that cannot do it themselves.
            "nurses": {beat.process[0]: beat.rank for beat in beats if beat.rank not in silent},
        }
        self._store.compare_set("hang", "", json.dumps(hang))
        self._end(json.loads(self._store.get("hang")))

    def _end(self, hang: dict[str, Any]) -> None:
        """Dump the stacks of this rank, and of those on this machine that cannot, and end this process."""
        self._ending = True
        if self.rank == hang["speaker"]:
            log.critical("%s", hang["text"])
        _write(self._file, self.rank, hang["text"])
        faulthandler.dump_traceback(self._file, all_threads=True)
        host = self.process[0]
        helpless = [(rank, pid) for rank, where, pid, start in hang["silent"] if (where, began(pid)) == (host, start)]
        if hang["nurses"].get(host) != self.rank:
            helpless = []
        for rank, pid in helpless:
            with _open(self.path.with_name(f"rank_{rank:05d}.txt")) as file:
                _write(file, rank, hang["text"])
            _signal(pid, DUMP_SIGNAL)
            _signal(pid, signal.SIGCONT)
        time.sleep(DUMP_SECONDS)
        for _, pid in helpless:  # before they train on
            _signal(pid, signal.SIGKILL)
        time.sleep(GRACE_SECONDS)
        logging.shutdown()
        os._exit(HUNG)


def _open(path: Path) -> TextIO:
    """The file of a rank's stacks or, where it cannot be written, stderr."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", buffering=1)
    except OSError as error:
        log.warning("cannot open %s (%s): stacks will go to stderr", path, error)
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)


def _write(file: TextIO, rank: int, text: str) -> None:
    with suppress(OSError):  # of a full disk, say: the rank has to end in any case
        file.write(f"\n==== {time.strftime('%Y-%m-%d %H:%M:%S')}, rank {rank}: {text}\n")


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, number)
