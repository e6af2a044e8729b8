"""A process that works on what strangers wrote, and may hang, eat memory or crash without harm.

Sandbox starts it and is what the rest of the package uses. Its other half is `serve`, which runs in the process:
`python -m megagpt.data.corpus.text.inputs.sandbox DESCRIPTOR MODULE:FACTORY OPTIONS SECONDS BYTES`.
"""

import importlib
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from megagpt.errors import ConfigError

SECONDS = 10.0
"""CPU time for one piece of work. Not time on the clock: results must not depend on what else the machine does."""
PATIENCE = 1800.0
"""Seconds on the clock after which a process that neither answers nor uses up its CPU time, or does not start, is hung:
so many that a machine with too much to do does not seem hung."""
MEMORY = 1 << 30
"""Bytes that it may take beyond what it holds at the start."""

_HEAD = struct.Struct("=cd")
"""Before each answer: of which kind it is, and CPU seconds."""
_READY, _DONE, _LAST, _FAILED, _NO_MEMORY = b"r", b"d", b"l", b"f", b"m"
_WORN = 4
"""A process whose memory has grown by so large a part of what it may take is replaced: all work finds equal room."""


class Failed(Exception):
    """A piece of work could not be done; says why."""


class Sandbox:
    """Calls a function in another process, which is started at the first call and again whenever it has died.

    target: "module:factory", called as factory(options) in that process, gives the function from bytes to text
    seconds: CPU time for each call; memory: bytes for all that it allocates; patience: time on the clock for each call
    """

    def __init__(
        self,
        target: str,
        options: str = "",
        seconds: float = SECONDS,
        memory: int = MEMORY,
        patience: float = PATIENCE,
    ):
        self.command = [target, options, str(seconds), str(memory)]
        self.seconds, self.memory, self.patience = seconds, memory, patience
        self.cpu_seconds = 0.0
        """CPU time of all calls that were answered or took too long."""
        self._process: subprocess.Popen | None = None
        self._link: Connection | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, work: bytes) -> str:
        """The text that the function makes of `work`. Raises Failed when it raises, dies, or takes too much."""
        if self._process is None:
            self._start()
        try:
            self._link.send_bytes(work)
            answer = self._answer(self.patience)
        except (OSError, EOFError) as error:
            raise Failed(self._cause_of_death(error)) from None
        kind, used = _HEAD.unpack_from(answer)
        content = answer[_HEAD.size :]
        self.cpu_seconds += used
        if kind in (_NO_MEMORY, _LAST):
            self.close()
        if kind == _NO_MEMORY:
            raise Failed(f"needs more than {self.memory >> 20} MiB of memory")
        if kind == _FAILED:
            raise Failed(content.decode())
        return content.decode()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._link.close()
            self._process.kill()
            self._process.wait()
            self._process = self._link = None

    def _start(self) -> None:
        self._link, other = Pipe()
        try:
            command = [sys.executable, "-m", __name__, str(other.fileno()), *self.command]
            self._process = subprocess.Popen(
                command, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        finally:
            other.close()
        try:
            answer = self._answer(PATIENCE)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"a process for {self.command[0]} {self._cause_of_death(error)} at its start") from None
        kind, _ = _HEAD.unpack_from(answer)
        if kind != _READY:
            self.close()
            raise ConfigError(answer[_HEAD.size :].decode())

    def _answer(self, seconds: float) -> bytes:
        if not self._link.poll(seconds):
            raise TimeoutError(f"did not answer in {seconds:g} s")
        return self._link.recv_bytes()

    def _cause_of_death(self, error: Exception) -> str:
        if not isinstance(error, TimeoutError):  # or it still runs
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=PATIENCE)
        code = self._process.poll()
        self.close()
        if code is None:
            return str(error)
        if code == -signal.SIGPROF:
            self.cpu_seconds += self.seconds
            return f"takes more than {self.seconds:g} s of CPU time"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def serve(link: Connection, make: Callable[[], Callable[[bytes], str]], seconds: float, memory: int) -> None:
    """Answer calls until the other end hangs up."""

    def answer(kind: bytes, used: float = 0.0, text: str = "") -> None:
        with suppress(BrokenPipeError):
            link.send_bytes(_HEAD.pack(kind, used) + text.encode(errors="replace"))

    try:
        function = make()
    except Exception as error:  # the other end tells people
        answer(_FAILED, text=str(error))
        return
    held = _peak_memory()
    _limit_memory(held + 2 * memory)
    answer(_READY)
    os.dup2(1, 2)  # to nowhere: what libraries log of each bad page, which the caller tells in its own way
    with suppress(EOFError):
        while True:
            work, kind, text = link.recv_bytes(), _DONE, ""
            # The timer counts CPU time of this process; at its end the kernel kills it, whatever code it is in, and
            # also when nobody is left at the other end.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            start = time.process_time()
            try:
                text = function(work)
            except MemoryError:
                kind = _NO_MEMORY
            except Exception as error:  # of any kind: a library met something that nobody thought of
                kind, text = _FAILED, f"{type(error).__name__}: {error}"[:1000]
            signal.setitimer(signal.ITIMER_PROF, 0)
            grown = _peak_memory() - held
            if grown > memory:
                kind = _NO_MEMORY  # libraries say something else, or give half a text, when they get no more
            elif grown > memory // _WORN and kind == _DONE:
                kind = _LAST
            answer(kind, time.process_time() - start, text)


def _peak_memory() -> int:
    """Bytes: the most that this process has held."""
    # Linux has getrusage begin with what the parent held before exec.
    with suppress(OSError), open("/proc/self/status", "rb") as file:  # noqa: PTH123
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(b"VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


def _limit_memory(limit: int) -> None:
    # Of data, not of addresses: those count what allocators and thread stacks only reserve.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main(descriptor: str, target: str, options: str, seconds: str, memory: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too; the other end ends it
    module, factory = target.split(":")
    with Connection(int(descriptor)) as link:
        serve(link, lambda: getattr(importlib.import_module(module), factory)(options), float(seconds), int(memory))


if __name__ == "__main__":
    _main(*sys.argv[1:])
