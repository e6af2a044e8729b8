"""Runs untrusted programs in a sandbox, and decides outside of their reach whether they pass their tests.

A run has two processes, each in its own bubblewrap box. The **candidate** holds the program and answers calls; the
**tester** holds the tests, calls the candidate, and compares. Two pipes are their only connection. Answers are plain
data, from which the tester builds values of Python's built-in types, and the tester sends the verdict through its own
pipe. So a program cannot forge a verdict. Frames, patched builtins, printed output, exit codes and memory do not help
it, because the tester is another process in another process namespace; an object that equals everything does not
either, because objects do not cross the pipe. Exceptions of the program cross by the rules of
`sandbox_worker.Candidate`.

Limitations: a program that returns the right values passes, no matter how it computes them, and weak tests prove
little. A box is a set of Linux namespaces and a filter of system calls (`system_calls`) on the same kernel: it does not
stop an attack on the kernel through a system call that programs need.
"""

import contextlib
import itertools
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from megagpt.errors import ConfigError
from megagpt.evaluate import sandbox_worker
from megagpt.evaluate.system_calls import system_call_filter

Sandbox = Literal["bwrap", "none"]

UIDS = range(50_000, 60_000)
"""User ids of boxes when megagpt runs as root. Each box has its own, because process limits count per user."""

_MIB = 2**20
_INSIDE = "/sandbox_worker.py"


@dataclass(frozen=True)
class Limits:
    """Limits of a program's resources; a program that exceeds one fails."""

    wall_seconds: float = 10.0
    """Seconds from the start of the boxes to the verdict."""
    cpu_seconds: int = 5
    """Seconds of processor time, of all threads together."""
    memory_mib: int = 512
    """Address space, MiB."""
    threads: int = 16
    """Number of threads; a program cannot start processes."""
    open_files: int = 64
    """Number of open files."""
    answer_mib: int = 8
    """Size of one answer to the tester, MiB."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} is {value}; it must be positive")

    def resources(self) -> dict[str, int]:
        """The limits for `setrlimit`, by name."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_mib * _MIB,
            "RLIMIT_NPROC": self.threads,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class SandboxJob:
    """A program and its tests, as Python source. Only the program is untrusted."""

    program: str
    reference: str
    """Source of helper functions and classes that the tests use in addition to the candidate's functions."""
    functions: tuple[str, ...]
    """Names of the candidate's functions that the tests call."""
    tests: str
    """Source of the tests, which pass if they end without an exception."""


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed its tests."""

    passed: bool
    reason: str
    """Reason of the failure; empty if passed."""
    seconds: float
    """Wall time from start to verdict."""


class SandboxRunner:
    """Runs programs against their tests; thread-safe."""

    def __init__(self, sandbox: Sandbox = "bwrap", limits: Limits | None = None) -> None:
        """Raises ConfigError when `sandbox` is "bwrap" and boxes cannot be created, and never falls back to "none"."""
        if sandbox not in ("bwrap", "none"):
            raise ConfigError(f"sandbox is {sandbox!r}; it must be bwrap, or none to run programs unprotected")
        self.sandbox, self.limits = sandbox, limits or Limits()
        self._interpreter = Path(sys.executable).resolve()  # the virtual environment's base interpreter
        self._bwrap = shutil.which("bwrap")
        self._filter = b""
        self._uids = itertools.count(secrets.randbelow(len(UIDS)))
        if sandbox == "bwrap":
            self._filter = system_call_filter(platform.machine())
            self._require_boxes()

    def run(self, job: SandboxJob) -> Verdict:
        """Run `job.program` against its tests; all its processes have ended when the call returns."""
        started = time.perf_counter()
        found = self._run(job)
        passed, reason = found["passed"], found["reason"]
        return Verdict(passed, "" if passed else reason or "failed", time.perf_counter() - started)

    def run_reference(self, job: SandboxJob) -> Verdict:
        """`run` for a correct program; repeated once after a failure, because a busy machine may have caused it."""
        first = self.run(job)
        return first if first.passed else self.run(job)

    def _run(self, job: SandboxJob) -> dict[str, Any]:
        content = vars(job) | {"longest_answer": self.limits.answer_mib * _MIB}
        with (
            _pipe() as (call_end, requests),
            _pipe() as (answers, answer_end),
            self._side("candidate", stdin=call_end, stdout=answer_end) as candidate,
            self._side("tester", requests, answers, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tester,
        ):
            for end in (call_end, requests, answers, answer_end):  # so that each side notices when the other ends
                end.close()
            try:
                output, _ = tester.communicate(json.dumps(content).encode(), timeout=self.limits.wall_seconds)
            except subprocess.TimeoutExpired:
                return {"passed": False, "reason": f"timed out after {self.limits.wall_seconds:g} s"}
            if not output:
                return {"passed": False, "reason": f"the tester ended without a verdict ({_how(tester)})"}
            verdict = json.loads(output)
            if verdict["ended"]:
                verdict["reason"] += f" ({_how(candidate)})"
            return verdict

    @contextlib.contextmanager
    def _side(self, name: str, *files: BinaryIO, **options: Any) -> Iterator[subprocess.Popen]:
        """The process of one side. files: open files whose descriptors it gets. options: for Popen."""
        limits = self.limits.resources()
        arguments = [str(file.fileno()) for file in files]
        python = [str(self._interpreter), "-s", "-S", "-P", "-B"]
        if self.sandbox == "none":
            del limits["RLIMIT_NPROC"]  # it counts all processes of the user
            command = [*python, sandbox_worker.__file__, name, "", json.dumps(limits), *arguments]
            with _process(command, files, **options) as process:
                yield process
            return
        uid = str(UIDS[next(self._uids) % len(UIDS)]) if os.geteuid() == 0 else ""
        with _pipe() as (program, writer):
            writer.write(self._filter)  # fits into the pipe's buffer
            writer.close()
            command = [*self._box(program), *python, _INSIDE, name, uid, json.dumps(limits), *arguments]
            with _process(command, [*files, program], **options) as process:
                yield process

    def _box(self, filter_program: BinaryIO) -> list[str]:
        """The command of bubblewrap with its options; it reads `filter_program`.

        As root, the box starts as root and keeps the capability to change the user, because another user could not read
        an interpreter in root's home. The side changes the user first, which drops the capability. Without root, the
        box is a user namespace.
        """
        user = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else ["--unshare-user"]
        spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        options = [self._bwrap, *spaces, "--die-with-parent", "--new-session", "--cap-drop", "ALL", *user, "--clearenv"]
        options += ["--seccomp", str(filter_program.fileno())]
        options += ["--hostname", "box", "--setenv", "PYTHONHASHSEED", "0", "--ro-bind", "/usr", "/usr"]
        for folder in ("/lib", "/lib64"):
            if Path(folder).is_symlink():
                options += ["--symlink", str(Path(folder).readlink()), folder]
            else:
                options += ["--ro-bind-try", folder, folder]
        options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        prefix = Path(sys.base_prefix).resolve()
        if not prefix.is_relative_to("/usr"):
            for parent in reversed(prefix.parents[:-1]):  # readable by the box's user, unlike perhaps outside
                options += ["--perms", "0755", "--dir", str(parent)]
            options += ["--ro-bind", str(prefix), str(prefix)]
        options += ["--ro-bind", sandbox_worker.__file__, _INSIDE, "--proc", "/proc", "--dev", "/dev"]
        return [*options, "--dir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"]

    def _require_boxes(self) -> None:
        instead = "or set sandbox=none to run programs that nobody has read without protection"
        if not self._bwrap:
            raise ConfigError(
                "running code needs bubblewrap (0.8 or newer), which is not installed: apt-get install bubblewrap, "
                f"{instead}"
            )
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with self._side("candidate", **quiet) as trial:
            _, errors = trial.communicate()
        if trial.returncode:
            said = errors.decode(errors="replace").strip() or f"exit status {trial.returncode}"
            raise ConfigError(
                f"bubblewrap cannot create a sandbox here ({said}): allow user namespaces (sysctl "
                "kernel.unprivileged_userns_clone and user.max_user_namespaces; in a container, its security options), "
                f"{instead}"
            )


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The read end and the write end of a new pipe."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb") as writer:
        yield reader, writer


@contextlib.contextmanager
def _process(command: list[str], files: Sequence[BinaryIO], **options: Any) -> Iterator[subprocess.Popen]:
    """A process with an empty environment and the open `files`; killed at the end, with all processes in its box."""
    # A box can read bubblewrap's own environment in /proc.
    options = {"env": {"PYTHONHASHSEED": "0", "PATH": os.defpath}, "stderr": subprocess.DEVNULL} | options
    numbers = [file.fileno() for file in files]
    with subprocess.Popen(command, pass_fds=numbers, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _how(process: subprocess.Popen) -> str:
    """How a process ended: a signal's name or its exit status."""
    try:
        status = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return "closed its pipe"
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"exit status {status}"
