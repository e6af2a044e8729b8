"""A launcher that extends torchrun for long jobs.

    python -m megagpt.parallel.torchrun --nproc-per-node 2 -m megagpt experiment=demo

It takes torchrun's arguments and differs from torchrun in six points:

- The store of a job on one machine listens on the loopback interface only; torchrun's listens on every interface
  without authentication.
- SIGUSR1 is passed on to the ranks, which then save and stop; torchrun would end at this signal.
- At Ctrl-C the ranks get SIGTERM, at which they save and stop; ranks that are still starting end without a traceback.
  A second Ctrl-C kills them all.
- The exit code is that of the rank that failed, so that the caller can tell whether to try again; torchrun's is 1.
- One line says which rank failed; the reason is in that rank's own message.
- Unless OMP_NUM_THREADS is set, the ranks divide the machine's cores; torchrun gives each a single thread.

`--outcome FILE` writes the outcome for a batch script in one line: `cause code text`. The cause is 0 for permanent
failures. Of several launchers, the one with the smallest cause explains the others.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

from megagpt import env
from megagpt.errors import FOR_GOOD, HUNG, STOPPED_BY_SIGNAL, ConfigError, DistributedError, MegaGPTError

ADDRESS = "127.0.0.1"

NOISY = tuple(f"torch.distributed.elastic.{module}.api" for module in ("multiprocessing", "agent.server"))
"""Loggers of torchrun that report how it ends ranks."""

LOOK_SECONDS = 0.5
"""Time between two searches for ranks that have not had the signal yet."""

CONSEQUENCES = (
    HUNG,
    DistributedError.exit_code,
    1,
    128 + signal.SIGABRT,
    STOPPED_BY_SIGNAL,
    128 + signal.SIGTERM,
    0,
)
"""Exit codes of ranks that may have failed because of another rank, from the most informative to the least.

NCCL ends a rank with SIGABRT when another rank is missing; a rank's own exit codes are more informative.
"""

OVERDUE_SECONDS = 15
"""A rank that ends by SIGKILL this long after the first failure was killed by torchrun, which sends SIGKILL 30 s after
SIGTERM."""


def main(arguments: list[str] | None = None) -> int:
    """Run torchrun's command line. Returns the exit code; raises ConfigError for an address of another machine."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--outcome", type=Path)
    own, others = parser.parse_known_args(arguments)
    options = run.parse_args(others)
    if options.nproc_per_node.isdecimal():
        env.share_cores(int(options.nproc_per_node))
    if options.nnodes in ("1", "1:1") and not options.standalone and not options.rdzv_endpoint:
        options.master_port = options.master_port or _free_port()  # without a port torchrun uses another store
        static_tcp_rendezvous.TCPStore = store
    pass_on(signal.SIGUSR1)
    ctrl_c = CtrlC()
    api._terminate_process_handler = ctrl_c
    if options.max_restarts == 0:  # with restarts, these loggers are the only report of an attempt's end
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    code, text = 0, "finished"
    try:
        run.run(options)
    except ChildFailedError as error:
        code, text = verdict(error.failures)
        sys.stderr.write(f"{text}\n")
    except SignalException as error:
        number = signal.SIGINT if ctrl_c.pressed else error.sigval
        code, text = 128 + number, f"{socket.gethostname()}: ended by {number.name}"
    if own.outcome:
        own.outcome.write_text(f"{cause(code)} {code} {text}\n")
        # A run that saved and stopped has not failed; at another code srun would end nodes that are still saving.
        return 0 if code == STOPPED_BY_SIGNAL else code
    return code


def store(host: str, port: int, world_size: int, is_master: bool, timeout: Any, multi_tenant: bool) -> dist.TCPStore:
    """Torchrun's store, but listening on the loopback interface. Raises ConfigError for another address."""
    if host not in (ADDRESS, "localhost"):
        raise ConfigError(f"a job on one machine uses the address {ADDRESS}, not {host}: leave --master-addr out")
    listener = socket.create_server((ADDRESS, port))
    return dist.TCPStore(
        ADDRESS, port, world_size, is_master, timeout, multi_tenant=False, master_listen_fd=listener.detach()
    )


def _free_port() -> int:
    with socket.create_server((ADDRESS, 0)) as server:
        return server.getsockname()[1]


class CtrlC:
    """Replaces torchrun's handler of termination signals; only Ctrl-C is handled differently."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Let torchrun end the ranks; at a second Ctrl-C, kill them here."""
        if number != signal.SIGINT:
            raise SignalException(f"got {signal.Signals(number).name}", signal.Signals(number))
        if self.pressed:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        self.pressed = True
        raise SignalException("Ctrl-C", signal.SIGTERM)


def pass_on(number: signal.Signals) -> None:
    """Pass the signal on to every rank once, also to ranks that start later. It no longer ends this process."""
    reached: set[int] = set()

    def deliver() -> None:
        while True:
            for pid in _children() - reached:
                reached.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(LOOK_SECONDS)

    signal.signal(number, lambda *_: threading.Thread(target=deliver, daemon=True).start())


def _children() -> set[int]:
    pids: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has just ended
            pids.update(map(int, path.read_text().split()))
    return pids


def verdict(failures: dict[int, ProcessFailure]) -> tuple[int, str]:
    """Exit code and description of the failure that explains the others best. A signal's code is 128 plus its number.

    Most of the ranks that fail together only lost contact to another one, or were ended by torchrun.
    """
    first = min(failure.timestamp for failure in failures.values())
    codes = {}
    for rank, failure in failures.items():
        overdue = failure.exitcode == -signal.SIGKILL and failure.timestamp - first >= OVERDUE_SECONDS
        number = signal.SIGTERM if overdue else -failure.exitcode
        codes[rank] = 128 + number if number > 0 else failure.exitcode
    rank = min(codes, key=lambda rank: cause(codes[rank]))
    return codes[rank], f"rank {rank} on {socket.gethostname()}: {_message(codes[rank])}"


def cause(code: int) -> int:
    """Order of exit codes by how well they explain a failure, best first.

    0: a permanent failure. 1 and 2: a cause of other ranks' failures. 3 and more: may be caused by another rank.
    """
    if code in FOR_GOOD:
        return 0
    if code in CONSEQUENCES:
        return 3 + CONSEQUENCES.index(code)
    return 2 if code > 128 else 1


def _message(code: int) -> str:
    if code > 128:
        return f"ended by {signal.Signals(code - 128).name}"
    names = {kind.exit_code: kind.__name__ for kind in MegaGPTError.__subclasses__()}
    names |= {HUNG: "it or another rank hung", STOPPED_BY_SIGNAL: "stopped by a signal"}
    return f"exit code {code} ({names.get(code, 'an unknown error')})"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
