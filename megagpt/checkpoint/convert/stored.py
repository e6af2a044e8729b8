"""Tensors in a file of `torch.save`, which are read in parts and compared with their CRC-32."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import torch

from megagpt.checkpoint.files import CHUNK, allocate, open_regular
from megagpt.checkpoint.format import memory
from megagpt.errors import CheckpointError


@dataclass(eq=False)
class Storage:
    """The bytes of one or more tensors: an entry of a zip file."""

    path: Path
    start: int
    """Byte of the file at which they begin."""
    size: int
    """Number of bytes."""
    crc: int
    """CRC-32 of the bytes; 0 when the file does not give it."""
    dtype: torch.dtype
    checked: bool = False

    def check(self, file: BinaryIO) -> None:
        """Compares the CRC-32 at the first use. Raises CheckpointError."""
        if self.crc and not self.checked:
            file.seek(self.start)
            found, left = 0, self.size
            while left and (data := file.read(min(left, CHUNK))):
                found, left = crc32(data, found), left - len(data)
            if left or found != self.crc:
                raise CheckpointError(f"{self.path} is corrupt: its bytes from {self.start:,} on fail their CRC-32")
        self.checked = True


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose data is still in its file."""

    storage: Storage
    start: int
    """Byte of the file at which its first element begins."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.storage.path

    def read(self) -> torch.Tensor:
        """The tensor, contiguous, on the CPU. Raises CheckpointError."""
        if self.is_contiguous:
            return self.read_flat(0, prod(self.shape)).view(self.shape)
        extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (
            self._read(0, allocate((extent,), self.dtype, self.path)).as_strided(self.shape, self.stride).contiguous()
        )

    def read_flat(self, first: int, count: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Elements first..first + count in row-major order, [count]; written into `out` if it is given.

        Raises: CheckpointError when the tensor has fewer elements.
        """
        out = allocate((count,), self.dtype, self.path) if out is None else out
        if first + count > prod(self.shape):
            raise CheckpointError(f"{self.path}: elements {first}..{first + count} of a tensor of {prod(self.shape)}")
        if self.is_contiguous and out.dtype == self.dtype:
            return self._read(first, out)
        return out.copy_(self.read().flatten()[first : first + count])

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow each other in the file in row-major order."""
        expected = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        steps = zip(self.shape, self.stride, expected, strict=True)
        return 0 in self.shape or all(size == 1 or step == wanted for size, step, wanted in steps)

    def _read(self, first: int, data: torch.Tensor) -> torch.Tensor:
        buffer = memory(data)
        with open_regular(self.path) as file:
            self.storage.check(file)
            file.seek(self.start + first * self.dtype.itemsize)
            while buffer:
                got = file.readinto(buffer)
                if not got:
                    raise CheckpointError(f"{self.path} ends early: it was cut while it was read")
                buffer = buffer[got:]
        return data
