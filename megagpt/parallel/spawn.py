"""Starts ranks on this machine without torchrun, calls a function on each, and returns the results."""

import datetime
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megagpt import env
from megagpt.errors import DistributedError

PRELOAD = ["megagpt.parallel.megatron"]
"""Modules that a server process imports once before it forks the ranks, because importing them takes seconds."""


def run_ranks(function: Callable, world_size: int, *args: Any, timeout: float = 120, gpus: bool = False) -> list[Any]:
    """Call `function(*args)` on `world_size` ranks that have a default process group; return each rank's result.

    `function` must be importable (defined at the top level of a module); `args` and results are pickled. Ranks use CPUs
    and gloo, or with `gpus` one GPU each and NCCL. A collective that hangs fails after `timeout` seconds. Raises
    DistributedError with the traceback of the rank that failed first.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        ranks = [
            context.Process(target=_run_rank, args=(rank, function, args, world_size, timeout, gpus, folder))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        errors = sorted(Path(folder).glob("error*"), key=lambda path: path.stat().st_mtime_ns)
        if errors:
            failed = errors[0].name.removeprefix("error")
            raise DistributedError(f"rank {failed} of {world_size} failed:\n{errors[0].read_text()}")
        if any(rank.exitcode for rank in ranks):
            raise DistributedError(f"ranks ended with exit codes {[rank.exitcode for rank in ranks]}")
        return [pickle.loads(Path(f"{folder}/result{rank}").read_bytes()) for rank in range(world_size)]


def _run_rank(
    rank: int, function: Callable, args: tuple, world_size: int, timeout: float, gpus: bool, folder: str
) -> None:
    env.become_rank(rank, world_size, gpus)
    if gpus:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if gpus else "gloo",
        store=dist.FileStore(f"{folder}/store", world_size),
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout),
    )
    try:
        result = function(*args)
    except BaseException:
        Path(f"{folder}/error{rank}").write_text(traceback.format_exc())
        os._exit(1)  # at once, so that other ranks see a lost connection and do not wait
    Path(f"{folder}/result{rank}").write_bytes(pickle.dumps(result))
    if dist.is_initialized():  # a function that runs a stage has destroyed the group already
        dist.barrier()
        dist.destroy_process_group()
