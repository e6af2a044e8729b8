"""Starts ranks on this machine's CPUs and brings back what each returned."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megagpt.errors import DistributedError
from megagpt.parallel.spawn import run_ranks


def run_distributed(function: Callable, world_size: int, *args: Any, timeout: float = 600) -> list[Any]:
    """See `megagpt.parallel.spawn.run_ranks`; a rank that fails fails the test, with its traceback."""
    try:
        return run_ranks(function, world_size, *args, timeout=timeout)
    except DistributedError as error:
        raise AssertionError(str(error)) from None


def has_libaio() -> bool:
    """Whether DeepSpeed can compile what reads and writes swap files."""
    return Path("/usr/include/libaio.h").exists() and shutil.which("g++") is not None
