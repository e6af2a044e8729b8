"""Signs of life: every rank writes what it is doing into the store of the job, where the other ranks read it."""

import itertools
import json
import socket
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from megagpt.parallel import launch

WAITING = ("torch/distributed/", "/p2p_communication.py")
"""Parts of file names: a rank whose main thread is in such a file waits for other ranks."""


@dataclass
class Progress:
    """What this rank is doing. The main thread writes it, the watchdog's thread reads it."""

    step: int = 0
    """The step that is under way."""
    section: str = "start"
    """The section of the step, such as forward or save."""
    entered: int = 0
    """Sections that this rank has entered so far; nothing has moved while it stays the same."""
    first_step: bool = True
    """Whether the first step is under way: kernels are compiled then, for which `start_timeout` allows."""


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life."""

    rank: int
    number: int
    """Signs that the rank has given so far."""
    step: int
    section: str
    entered: int
    """Sections that the rank has entered so far."""
    idle: float
    """Seconds since it entered the last one."""
    frame: str
    """Where its main thread is."""
    waiting: bool
    """Whether its main thread waits for other ranks."""
    process: tuple[str, int, str]
    """Host, process id, and when the process began in clock ticks since the machine did."""
    left: bool
    """Whether the rank is no longer watched."""

    @classmethod
    def unheard(cls, rank: int) -> "Beat":
        """Stands for a rank that has given no sign yet; it differs from every sign that a rank gives."""
        return cls(rank, 0, 0, "start", 0, 0.0, "an unknown place", False, ("", 0, ""), False)

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.section}, {self.idle:.0f} s, at {self.frame})"


def this_process() -> tuple[str, int, str]:
    """Host, process id and start of this process, which together no other process shares."""
    pid = int(Path("/proc/self").readlink().name)
    return socket.gethostname(), pid, began(pid)


def began(pid: int) -> str:
    """When a process of this machine began, in clock ticks since the machine did; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def main_frame() -> tuple[str, bool]:
    """Where the main thread is, and whether it waits for other ranks there."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    if frame is None:
        return "its end", False
    code = frame.f_code
    place = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno} in {code.co_name}"
    return place, any(part in code.co_filename for part in WAITING)


class Heartbeat:
    """Gives this rank's signs of life and reads those of all ranks. Every method costs the store one request a sign."""

    CONTEXTS = itertools.count(1)
    """Numbers of this process's heartbeats, each of which has keys of its own in the store."""

    def __init__(self, progress: Progress, rank: int, size: int, store: dist.Store) -> None:
        """store: holds the signs of all `size` ranks and nothing else."""
        self.progress, self.rank, self.size, self.store = progress, rank, size, store
        self.process = this_process()
        self._number = 0

    @classmethod
    def of_this_rank(cls, progress: Progress) -> "Heartbeat":
        """Connect to the job's store. All ranks make their heartbeats in the same order."""
        store = launch.side_store(f"watchdog{next(cls.CONTEXTS)}")
        return cls(progress, dist.get_rank(), dist.get_world_size(), store)

    def beat(self, idle: float, left: bool = False) -> None:
        """Give a sign. idle: seconds since this rank entered its section. left: whether it is the last one."""
        frame, waiting = main_frame()
        self._number += 1
        sign = Beat(
            rank=self.rank,
            number=self._number,
            step=self.progress.step,
            section=self.progress.section,
            entered=self.progress.entered,
            idle=idle,
            frame=frame,
            waiting=waiting,
            process=self.process,
            left=left,
        )
        self.store.set(f"beat{self.rank}", json.dumps(asdict(sign)))

    def last_beat(self, rank: int) -> Beat:
        """The last sign of a rank. A rank that stops early may never have given one, and must not be overlooked."""
        if not (found := self._read(f"beat{rank}")):
            return Beat.unheard(rank)
        values = json.loads(found)
        return Beat(**values | {"process": tuple(values["process"])})

    def last_beats(self) -> list[Beat]:
        """The last sign of every rank, by rank."""
        return [self.last_beat(rank) for rank in range(self.size)]

    def may_report(self, attempt: int) -> bool:
        """Whether this rank is to find out what hangs. Every attempt is the first rank's that asks.

        When a collective hangs, all ranks find out at the same time; all of them reading the signs of all would drown
        the store.
        """
        return self.store.compare_set(f"reporter{attempt}", "", str(self.rank)).decode() == str(self.rank)

    def announce(self, hang: dict) -> dict:
        """Tell all ranks of a hang; returns the one that was announced first, which all ranks believe."""
        return json.loads(self.store.compare_set("hang", "", json.dumps(hang)))

    def announced(self) -> dict | None:
        """The hang that a rank has announced; None when there is none."""
        return json.loads(found) if (found := self._read("hang")) else None

    def _read(self, key: str) -> str:
        """The value of a key, empty where it has none. To ask first whether there is one would be a request more."""
        return self.store.compare_set(key, "", "").decode()
