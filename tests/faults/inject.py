"""`python -m megagpt` with faults: each strikes once, on one rank, when its step comes, over all attempts of a job.

    torchrun --nproc-per-node 2 --max-restarts 9 tests/faults/inject.py FOLDER kill@3@1 load@6@1 ... -- OVERRIDES

FOLDER keeps which faults have struck, and when. A fault that ends in `!` strikes in every attempt.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from megagpt import env
from megagpt.__main__ import main
from megagpt.checkpoint import Checkpointer
from megagpt.data.loader import PretrainLoader
from megagpt.errors import DataError
from megagpt.log import run_tool
from megagpt.parallel.megatron import MegatronEngine
from megagpt.stages import base
from megagpt.train.objectives import LanguageModelObjective
from megagpt.train.trainer import Trainer

BARRIER = ctypes.create_string_buffer(64)
"""For two threads, of which the second never comes; no signal ends waiting there, as it ends sleep()."""
ctypes.CDLL(None).pthread_barrier_init(BARRIER, None, 2)


def sleep() -> None:
    time.sleep(10_000)


def hold_the_lock() -> None:
    """Wait in C without giving Python's lock back, as a library's dead loop would."""
    ctypes.PyDLL(None).pthread_barrier_wait(BARRIER)


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    raise ValueError("injected")


def find_broken_data() -> None:
    raise DataError("injected.jsonl:7: broken")


def talk_alone() -> None:
    dist.all_reduce(torch.ones(3))


def run_out_of_memory() -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, -1))
    torch.ones(2**30)


# kind: where it strikes, and what happens
FAULTS = {
    "kill": ((MegatronEngine, "train_step"), send(signal.SIGKILL)),
    "stop": ((MegatronEngine, "train_step"), send(signal.SIGSTOP)),
    "exception": ((MegatronEngine, "train_step"), fail),
    "data": ((MegatronEngine, "train_step"), find_broken_data),
    "groups": ((dist, "destroy_process_group"), sleep),
    "memory": ((MegatronEngine, "train_step"), run_out_of_memory),
    "mismatch": ((MegatronEngine, "train_step"), talk_alone),
    "load": ((PretrainLoader, "_train_batch"), sleep),
    "forward": ((LanguageModelObjective, "forward"), sleep),
    "lock": ((LanguageModelObjective, "loss"), hold_the_lock),
    "backward": ((torch.autograd, "backward"), sleep),
    "optimizer": ((torch.optim.AdamW, "step"), sleep),
    "evaluation": ((base, "evaluate"), sleep),
    "save": ((Checkpointer, "save"), sleep),
}


def install(folder: Path, texts: list[str]) -> None:
    """Make the faults strike in this process."""
    begun = {"step": 0}
    begin_step = Trainer.begin_step

    def counted(self):
        begun["step"] = self.state.step + 1
        return begin_step(self)

    Trainer.begin_step = counted
    for text in texts:
        kind, at, rank = text.rstrip("!").split("@")
        if env.rank() != int(rank):
            continue
        (owner, name), strike = FAULTS[kind]
        again = None if text.endswith("!") else folder / text
        setattr(owner, name, struck(getattr(owner, name), strike, lambda at=int(at): begun["step"] == at, again))


def struck(inner: Callable, strike: Callable, due: Callable[[], bool], marker: Path | None) -> Callable:
    """`inner`, preceded by `strike` when it is due; with a marker only once."""

    def outer(*arguments, **named):
        if due() and not (marker and marker.exists()):
            if marker:
                marker.write_text(str(time.time()))
            strike()
        return inner(*arguments, **named)

    return outer


if __name__ == "__main__":
    at = sys.argv.index("--")
    install(Path(sys.argv[1]), sys.argv[2:at])
    run_tool(lambda: main(sys.argv[at + 1 :]))
