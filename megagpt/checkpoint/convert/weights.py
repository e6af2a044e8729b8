"""The weights of a transformers folder: files of safetensors or of `torch.save`, single or in shards."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from megagpt.checkpoint.convert import safetensors_files
from megagpt.checkpoint.convert.pickles import load
from megagpt.checkpoint.convert.safetensors_files import indexed, inside
from megagpt.checkpoint.convert.stored import StoredTensor
from megagpt.checkpoint.files import CHUNK, allocate, shown
from megagpt.checkpoint.format import memory
from megagpt.errors import CheckpointError

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.bin")


class Weight(Protocol):
    """A tensor in a file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        """The tensor, contiguous. Raises CheckpointError."""

    def read_flat(self, first: int, count: int, out: torch.Tensor) -> torch.Tensor:
        """Elements first..first + count in row-major order, written into `out`. Raises CheckpointError."""


@dataclass(frozen=True)
class Pickled:
    """A tensor in a file of `torch.save`, which is read without executing code."""

    name: str
    tensor: StoredTensor

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.tensor.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensor."""
        return self.tensor.dtype

    def read(self) -> torch.Tensor:
        """The tensor, contiguous. Raises CheckpointError."""
        return self.tensor.read()

    def read_flat(self, first: int, count: int, out: torch.Tensor) -> torch.Tensor:
        """Elements first..first + count in row-major order, written into `out`. Raises CheckpointError."""
        return self.tensor.read_flat(first, count, out)


def open_folder(folder: Path) -> Mapping[str, Weight]:
    """{name: tensor} of a folder. Safetensors files take precedence over files of `torch.save`.

    Raises CheckpointError naming the file, see `safetensors_files.open_folder` and `pickles.load`.
    """
    names = (safetensors_files.SINGLE, safetensors_files.INDEX)
    if any(os.path.lexists(folder / name) for name in names):
        return safetensors_files.open_folder(folder)
    if os.path.lexists(folder / INDEX):
        return indexed(folder, INDEX, FILE_NAME, _read_file)
    if os.path.lexists(folder / SINGLE):
        return _read_file(inside(folder, SINGLE))
    raise CheckpointError(
        f"{folder} has neither {safetensors_files.SINGLE} nor {SINGLE}: save the model with save_pretrained of"
        " transformers"
    )


def _read_file(path: Path) -> dict[str, Weight]:
    values = load(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a dict of tensors")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise CheckpointError(f"{path}: {shown(name)} is not a tensor: only a model's state dict is read")
    return {name: Pickled(name, value) for name, value in values.items()}


def equal(one: Weight, other: Weight) -> bool:
    """Whether two tensors have the same bytes. Only a part of each is in memory at a time. Raises CheckpointError."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    size = max(1, CHUNK // one.dtype.itemsize)
    first, second = (allocate((min(size, prod(one.shape)),), one.dtype, side.path) for side in (one, other))
    for start in range(0, prod(one.shape), size):
        count = min(size, prod(one.shape) - start)
        sides = (side.read_flat(start, count, out[:count]) for side, out in ((one, first), (other, second)))
        if memory(next(sides)) != memory(next(sides)):
            return False
    return True
