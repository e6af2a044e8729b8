"""Swap files on a fast local disk, for parameters and optimizer state that ZeRO offloads to NVMe."""

import hashlib
import shutil
import weakref
from pathlib import Path
from typing import Any

import torch

from megagpt.config.schema import Config
from megagpt.errors import ConfigError


def swap_folder(config: Config, rank: int, owner: Any, bytes_needed: int) -> Path:
    """Make this rank's folder for swap files below `parallel.offload_path`; it is removed when `owner` is.

    Raises ConfigError when the folder cannot be made or its disk has less than `bytes_needed` free.
    """
    run = hashlib.sha256(str(Path(config.run_dir).absolute()).encode()).hexdigest()[:8]
    folder = Path(config.parallel.offload_path) / f"{config.run_name}-{run}" / f"rank{rank}"
    try:
        shutil.rmtree(folder, ignore_errors=True)  # a killed run may have left it
        folder.mkdir(parents=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"parallel.offload_path ({config.parallel.offload_path}) cannot be used: {error}") from error
    if free < bytes_needed:
        raise ConfigError(
            f"parallel.offload_path ({config.parallel.offload_path}) has {free / 1e9:.1f} GB free, but rank {rank}"
            f" alone needs {bytes_needed / 1e9:.1f} GB: choose another disk, or more data-parallel ranks"
        )
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder


def mapped(path: str, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """The first `numel` elements of a swap file, 1-D, as memory-mapped tensor."""
    return torch.from_file(path, shared=True, size=numel, dtype=dtype)
