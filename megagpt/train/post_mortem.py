"""Ends the ranks of a job that hangs, after each has dumped the stacks of its threads to a file."""

import faulthandler
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from megagpt.errors import HUNG
from megagpt.train.heartbeat import Beat, began, this_process

log = logging.getLogger(__name__)

GRACE_SECONDS = 2.0
"""Time for every rank to dump its stacks before the first one exits."""

DUMP_SECONDS = 0.3
"""Time for a resumed rank to dump its stacks."""

DUMP_SIGNAL = signal.SIGUSR2
"""Signal at which a rank dumps its stacks, even while it does not run Python code."""


@dataclass(frozen=True)
class Hang:
    """A hang, in the form in which the rank that found it announces it to all ranks."""

    text: str
    """The report."""
    reporter: int
    """The rank that logs the report."""
    silent: list[list[Any]]
    """[rank, host, process id, start time] of each rank that cannot exit by itself."""
    helpers: dict[str, int]
    """{host: the rank that ends the silent ranks on it}."""

    @classmethod
    def of(cls, text: str, beats: list[Beat], silent: set[int], finder: int) -> "Hang":
        """The hang that rank `finder` found. beats: the last heartbeats of the ranks that are watched."""
        return cls(
            text=text,
            reporter=finder if 0 in silent else 0,  # only rank 0 writes the log file
            silent=[[beat.rank, *beat.process] for beat in beats if beat.rank in silent],
            helpers={beat.process[0]: beat.rank for beat in beats if beat.rank not in silent},
        )


class PostMortem:
    """Dumps the stacks of this rank to its file, and ends this process and the silent ranks on its host."""

    def __init__(self, rank: int, path: Path) -> None:
        """path: the file for this rank's stacks, in the folder with the files of all ranks."""
        self.rank, self.path = rank, path
        self.ending = False
        self._file = _open(path)
        faulthandler.register(DUMP_SIGNAL, self._file, all_threads=True)

    def close(self) -> None:
        """Remove the handler of `DUMP_SIGNAL`, and close the file."""
        faulthandler.unregister(DUMP_SIGNAL)
        self._file.close()

    def end(self, hang: Hang) -> None:
        """Dump the stacks of this rank and of the silent ranks on its host, and end them all. Does not return."""
        self.ending = True
        if self.rank == hang.reporter:
            log.critical("%s", hang.text)
        _write(self._file, self.rank, hang.text)
        faulthandler.dump_traceback(self._file, all_threads=True)
        helped = self._silent_ranks_to_help(hang)
        for rank, pid in helped:
            with _open(self.path.with_name(f"rank_{rank:05d}.txt")) as file:
                _write(file, rank, hang.text)
            _signal(pid, DUMP_SIGNAL)
            _signal(pid, signal.SIGCONT)
        time.sleep(DUMP_SECONDS)
        for _, pid in helped:  # before they continue to train
            _signal(pid, signal.SIGKILL)
        time.sleep(GRACE_SECONDS)
        logging.shutdown()
        os._exit(HUNG)

    def _silent_ranks_to_help(self, hang: Hang) -> list[tuple[int, int]]:
        """(rank, process id) of the silent ranks on this host, if this rank is its helper; else []."""
        here = this_process()[0]
        if hang.helpers.get(here) != self.rank:
            return []
        return [(rank, pid) for rank, host, pid, start in hang.silent if (host, began(pid)) == (here, start)]


def _open(path: Path) -> TextIO:
    """The file for a rank's stacks; stderr if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", buffering=1)
    except OSError as error:
        log.warning("cannot open %s (%s): stacks will go to stderr", path, error)
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)


def _write(file: TextIO, rank: int, text: str) -> None:
    with suppress(OSError):  # for example a full disk: the rank must exit in any case
        file.write(f"\n==== {time.strftime('%Y-%m-%d %H:%M:%S')}, rank {rank}: {text}\n")


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # the process has already ended
        os.kill(pid, number)
