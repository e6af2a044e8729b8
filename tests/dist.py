"""Starts ranks on this machine and brings back what each returned."""

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


def _run_rank(rank: int, function: Callable, args: tuple, world_size: int, timeout: float, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", world_size),
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout),
    )
    try:
        result = function(*args)
    except BaseException:
        Path(f"{folder}/error{rank}").write_text(traceback.format_exc())
        os._exit(1)  # at once, so that peers see a lost connection rather than wait
    Path(f"{folder}/result{rank}").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def run_distributed(function: Callable, world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Call `function(*args)` on `world_size` gloo ranks, the default process group ready; return each rank's result.

    `function` must be importable (defined at the top of a test module). A collective that hangs fails after
    `timeout` seconds. The first rank's traceback is raised when any rank fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        ranks = [
            context.Process(target=_run_rank, args=(rank, function, args, world_size, timeout, folder))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        errors = sorted(Path(folder).glob("error*"), key=lambda path: path.stat().st_mtime_ns)
        if errors:
            raise AssertionError(f"{errors[0].name}:\n{errors[0].read_text()}")
        assert all(rank.exitcode == 0 for rank in ranks), [rank.exitcode for rank in ranks]
        return [pickle.loads(Path(f"{folder}/result{rank}").read_bytes()) for rank in range(world_size)]
