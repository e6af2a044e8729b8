"""torchrun as long jobs need it.

    python -m megagpt.parallel.torchrun --nproc-per-node 2 -m megagpt experiment=demo

It takes torchrun's arguments and differs from it in six things. The store of a job on one machine can be reached from
that machine alone; torchrun's own listens on every interface, and lets everybody in. SIGUSR1, on which ranks save and
stop, is passed on to them, where torchrun would die of it. On Ctrl-C they get SIGTERM, on which they save and stop too,
and which ends those that do neither yet without a traceback; a second Ctrl-C ends them all at once. It ends with the
exit code of the rank that failed, where torchrun's is always 1, so that who started it can tell what another attempt
may mend. It says in one line what failed, since a rank has said why. And unless OMP_NUM_THREADS is set, ranks share the
machine's cores, where torchrun gives each a single thread and says so at length.

`--outcome FILE` writes down for a batch script what came of it, in one line: `cause code text`. The cause is 0 for what
another attempt would only meet again, and of several launchers the smallest explains the others.
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
"""Loggers that tell how torchrun ends ranks."""

LOOK_SECONDS = 0.5
"""Time between two looks for ranks that have not had a signal yet."""

CONSEQUENCES = (
    HUNG,
    DistributedError.exit_code,
    1,
    128 + signal.SIGABRT,
    STOPPED_BY_SIGNAL,
    128 + signal.SIGTERM,
    0,
)
"""Exit codes of ranks that may have done nothing wrong, from the most telling to the least.

NCCL ends a rank by SIGABRT when another does not come: whatever a rank has said itself tells more.
"""

OVERDUE_SECONDS = 15
"""What ends by SIGKILL so long after the first failure was ended by torchrun, after 30 s without heed of SIGTERM."""


def main(arguments: list[str] | None = None) -> int:
    """torchrun's command line. Returns the exit code; raises ConfigError for an address that is not this machine's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--outcome", type=Path)
    own, others = parser.parse_known_args(arguments)
    options = run.parse_args(others)
    if options.nproc_per_node.isdecimal():
        env.share_cores(int(options.nproc_per_node))
    if options.nnodes in ("1", "1:1") and not options.standalone and not options.rdzv_endpoint:
        options.master_port = options.master_port or _free_port()  # without one torchrun takes another, open store
        static_tcp_rendezvous.TCPStore = store
    pass_on(signal.SIGUSR1)
    ctrl_c = CtrlC()
    api._terminate_process_handler = ctrl_c
    if options.max_restarts == 0:  # else what ended an attempt is worth a line
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
        # What stopped in order is no failure: srun would end the other nodes for it, which may still be saving.
        return 0 if code == STOPPED_BY_SIGNAL else code
    return code


def store(host: str, port: int, world_size: int, is_master: bool, timeout: Any, multi_tenant: bool) -> dist.TCPStore:
    """The store that torchrun asks for, listening on the loopback interface. Raises ConfigError for another address."""
    if host not in (ADDRESS, "localhost"):
        raise ConfigError(f"a job on one machine meets at {ADDRESS}, not at {host}: leave --master-addr out")
    listener = socket.create_server((ADDRESS, port))
    return dist.TCPStore(
        ADDRESS, port, world_size, is_master, timeout, multi_tenant=False, master_listen_fd=listener.detach()
    )


def _free_port() -> int:
    with socket.create_server((ADDRESS, 0)) as server:
        return server.getsockname()[1]


class CtrlC:
    """Torchrun's handler of signals that end it, with another answer to Ctrl-C."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Have torchrun end the ranks; at a second Ctrl-C, end them here."""
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
    """From now on have the signal reach every rank once, those too that are yet to start, and not end this process."""
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

    Of ranks that fail together most only lost contact, or were ended by torchrun.
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
    """How much an exit code explains: 0 is final, 1 and 2 explain what others met, 3 and more may come of others."""
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
