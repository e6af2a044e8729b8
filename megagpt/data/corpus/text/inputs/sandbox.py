"""A process for work on untrusted input. It may hang, use too much memory or crash without harm to the main process.

The class Sandbox starts the process and sends it work. `serve` runs in the process:
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
"""CPU time of one call, in seconds. Wall-clock time would make results depend on the machine's load."""
PATIENCE = 1800.0
"""Wall-clock seconds after which a process that does not answer or start counts as hung, even if it has CPU time left.
The limit is long because an overloaded machine may be slow."""
MEMORY = 1 << 30
"""Bytes that the process may take in addition to its memory at the start."""

_HEAD = struct.Struct("=cd")
"""Header of each answer: its kind, and CPU seconds."""
_READY, _DONE, _LAST, _FAILED, _NO_MEMORY = b"r", b"d", b"l", b"f", b"m"
_WORN = 4
"""A process whose memory has grown by 1/_WORN of the limit is replaced, so that all calls have about equal room."""


class Failed(Exception):
    """A call failed. The message is the reason."""


class Sandbox:
    """Calls a function in another process, which is started at the first call, and again after it has died.

    target: "module:factory"; factory(options), called in that process, returns the function from bytes to text
    seconds: limit of the CPU time of each call
    memory: limit of the memory that the process allocates, in bytes
    patience: limit of the wall-clock time of each call, in seconds
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
        """CPU time of all calls that were answered or exceeded their CPU time."""
        self._process: subprocess.Popen | None = None
        self._link: Connection | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, work: bytes) -> str:
        """The function's text for `work`.

        Raises Failed when the function raises, the process dies, or a limit is exceeded; ConfigError when the function
        cannot be made.
        """
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
        if not isinstance(error, TimeoutError):  # after a timeout the process still runs
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
    """Answer calls until the other end closes the connection."""

    def answer(kind: bytes, used: float = 0.0, text: str = "") -> None:
        with suppress(BrokenPipeError):
            link.send_bytes(_HEAD.pack(kind, used) + text.encode(errors="replace"))

    try:
        function = make()
    except Exception as error:  # the other end raises it as ConfigError
        answer(_FAILED, text=str(error))
        return
    held = _peak_memory()
    _limit_memory(held + 2 * memory)
    answer(_READY)
    os.dup2(1, 2)  # discard the libraries' log about bad pages; the caller reports them itself
    with suppress(EOFError):
        while True:
            work, kind, text = link.recv_bytes(), _DONE, ""
            # The timer counts CPU time of this process. When it expires, the kernel kills the process, in any code and
            # also if the other end is gone.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            start = time.process_time()
            try:
                text = function(work)
            except MemoryError:
                kind = _NO_MEMORY
            except Exception as error:  # libraries raise any class on unexpected input
                kind, text = _FAILED, f"{type(error).__name__}: {error}"[:1000]
            signal.setitimer(signal.ITIMER_PROF, 0)
            grown = _peak_memory() - held
            if grown > memory:
                kind = _NO_MEMORY  # out of memory, libraries may raise other errors or return half a text
            elif grown > memory // _WORN and kind == _DONE:
                kind = _LAST
            answer(kind, time.process_time() - start, text)


def _peak_memory() -> int:
    """Peak memory of this process in bytes."""
    # On Linux, getrusage includes the parent's memory before exec.
    with suppress(OSError), open("/proc/self/status", "rb") as file:  # noqa: PTH123
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(b"VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


def _limit_memory(limit: int) -> None:
    # RLIMIT_DATA, not RLIMIT_AS: address space also counts memory that allocators and thread stacks only reserve.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main(descriptor: str, target: str, options: str, seconds: str, memory: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too, but the other end handles it
    module, factory = target.split(":")
    with Connection(int(descriptor)) as link:
        serve(link, lambda: getattr(importlib.import_module(module), factory)(options), float(seconds), int(memory))


if __name__ == "__main__":
    _main(*sys.argv[1:])
