"""Who holds the others up: what each rank last said of itself, and which of them stand out."""

import socket
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

WAITING = ("torch/distributed/", "/p2p_communication.py")
"""Parts of the names of source files in which a rank waits for others."""

SHOWN = 8
"""Ranks that a report describes one by one."""


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life."""

    rank: int
    number: int
    """Signs that the rank has given before."""
    step: int
    section: str
    entered: int
    """Sections that the rank has entered so far."""
    idle: float
    """Seconds since then."""
    frame: str
    """Where its main thread is."""
    waiting: bool
    """Whether that is in communication with other ranks."""
    process: tuple[str, int, str]
    """Host, process id, and when the process began in clock ticks since the machine did."""
    left: bool
    """Whether the rank is no longer watched."""

    @classmethod
    def unheard(cls, rank: int) -> "Beat":
        """What stands for a rank that has given no sign yet; it equals no sign that a rank gives."""
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


def suspects(beats: list[Beat], silent: set[int]) -> list[int]:
    """The ranks that hold the others up; all of them where none stands out.

    A rank that gives no sign of life does; else, of those in the earliest step, one that does not wait for others;
    where all wait, or none does, one that has entered the fewest sections.
    """
    if silent:
        return sorted(silent)
    earliest = min(beat.step for beat in beats)
    behind = [beat for beat in beats if beat.step == earliest]
    busy = [beat for beat in behind if not beat.waiting]
    behind = busy or behind
    fewest = min(beat.entered for beat in behind)
    return [beat.rank for beat in behind if beat.entered == fewest]


def report(reason: str, beats: list[Beat], silent: set[int]) -> str:
    """What is known of a hang, in one line."""
    named = suspects(beats, silent)
    described = ", ".join(str(beat) for beat in beats if beat.rank in named[:SHOWN])
    if len(named) > SHOWN:
        described += f" and {len(named) - SHOWN} more"
    text = f"{reason}. Held up by {described}"
    others = Counter(beat.section for beat in beats if beat.rank not in named)
    if others:
        text += "; the other ranks: " + ", ".join(f"{count} in {section}" for section, count in others.items())
    return text
