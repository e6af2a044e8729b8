"""Heartbeats: every rank writes its state into the job's store, and other ranks read it there."""

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
    """This rank's state. The main thread writes it, the watchdog's thread reads it."""

    step: int = 0
    """The current step."""
    section: str = "start"
    """The current section of the step, such as forward or save."""
    entered: int = 0
    """Number of sections entered so far; while it does not change, there is no progress."""
    first_step: bool = True
    """Whether this is the first step, which compiles kernels and has its own time-out, `start_timeout`."""


@dataclass(frozen=True)
class Beat:
    """A heartbeat of a rank."""

    rank: int
    number: int
    """Number of heartbeats that the rank has sent so far."""
    step: int
    section: str
    entered: int
    """Number of sections that the rank has entered so far."""
    idle: float
    """Seconds since the rank entered its section."""
    frame: str
    """Place in the code where its main thread is."""
    waiting: bool
    """Whether its main thread waits for other ranks."""
    process: tuple[str, int, str]
    """Host, process id, and start time of the process in clock ticks since the machine's start."""
    left: bool
    """Whether this is the last heartbeat, because the rank is no longer watched."""

    @classmethod
    def unheard(cls, rank: int) -> "Beat":
        """Placeholder for a rank that has sent no heartbeat yet; it differs from every real heartbeat."""
        return cls(rank, 0, 0, "start", 0, 0.0, "an unknown place", False, ("", 0, ""), False)

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.section}, {self.idle:.0f} s, at {self.frame})"


def this_process() -> tuple[str, int, str]:
    """Host, process id and start time of this process; together they are unique."""
    pid = int(Path("/proc/self").readlink().name)
    return socket.gethostname(), pid, began(pid)


def began(pid: int) -> str:
    """Start time of a process on this machine in clock ticks since the machine's start; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def main_frame() -> tuple[str, bool]:
    """Place in the code where the main thread is, and whether it waits for other ranks there."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    if frame is None:
        return "its end", False
    code = frame.f_code
    place = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno} in {code.co_name}"
    return place, any(part in code.co_filename for part in WAITING)


class Heartbeat:
    """Sends this rank's heartbeats and reads those of other ranks. Each heartbeat costs one request to the store."""

    CONTEXTS = itertools.count(1)
    """Numbers of this process's `Heartbeat` objects; each has its own keys in the store."""

    def __init__(self, progress: Progress, rank: int, size: int, store: dist.Store) -> None:
        """store: holds only the heartbeats of all `size` ranks."""
        self.progress, self.rank, self.size, self.store = progress, rank, size, store
        self.process = this_process()
        self._number = 0

    @classmethod
    def of_this_rank(cls, progress: Progress) -> "Heartbeat":
        """Connect to the job's store. All ranks must create these objects in the same order."""
        store = launch.side_store(f"watchdog{next(cls.CONTEXTS)}")
        return cls(progress, dist.get_rank(), dist.get_world_size(), store)

    def beat(self, idle: float, left: bool = False) -> None:
        """Send a heartbeat. idle: seconds since this rank entered its section. left: whether it is the last one."""
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
        """The last heartbeat of a rank, or `Beat.unheard`: a rank that stopped early may never have sent one."""
        if not (found := self._read(f"beat{rank}")):
            return Beat.unheard(rank)
        values = json.loads(found)
        return Beat(**values | {"process": tuple(values["process"])})

    def last_beats(self) -> list[Beat]:
        """The last heartbeat of every rank, by rank."""
        return [self.last_beat(rank) for rank in range(self.size)]

    def may_report(self, attempt: int) -> bool:
        """Whether this rank reports the hang: in each attempt, the first rank that asks does.

        When a collective hangs, all ranks notice it at the same time. If each of them read the heartbeats of all ranks,
        they would overload the store.
        """
        return self.store.compare_set(f"reporter{attempt}", "", str(self.rank)).decode() == str(self.rank)

    def announce(self, hang: dict) -> dict:
        """Announce a hang to all ranks; returns the one that was announced first, which counts for all ranks."""
        return json.loads(self.store.compare_set("hang", "", json.dumps(hang)))

    def announced(self) -> dict | None:
        """The announced hang; None when there is none."""
        return json.loads(found) if (found := self._read("hang")) else None

    def _read(self, key: str) -> str:
        """The value of a key, "" when it has none. One request; checking for the key first would need a second one."""
        return self.store.compare_set(key, "", "").decode()
