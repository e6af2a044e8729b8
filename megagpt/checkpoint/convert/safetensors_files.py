"""Folders of safetensors files. Headers are checked before data is read; tensors are read and written one at a time."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch

from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.files import (
    CHUNK,
    JSON_LIMIT,
    allocate,
    open_regular,
    parse_json,
    read_bytes,
    shown,
    write_file,
    write_text,
)
from megagpt.checkpoint.format import CODES, DTYPES, MAX_DIMENSIONS, MAX_ELEMENTS, memory
from megagpt.errors import CheckpointError

T = TypeVar("T")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
SHARD_BYTES = 5_000_000_000
HEADER_LIMIT = 16 << 20
"""Largest header that is read, in bytes: enough for 100,000 tensors. The format allows 100 MB, which need 2.7 GB."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    position: int
    """Byte of the file at which its data begins."""

    def read(self) -> torch.Tensor:
        """The tensor. Raises CheckpointError."""
        return self.read_flat(0, prod(self.shape), allocate(self.shape, self.dtype, self.path))

    def read_flat(self, first: int, count: int, out: torch.Tensor) -> torch.Tensor:
        """`count` elements from the `first` one on, in row-major order, into `out`. Raises CheckpointError."""
        buffer = memory(out)[: count * self.dtype.itemsize]
        with open_regular(self.path) as file:
            file.seek(self.position + first * self.dtype.itemsize)
            while buffer:
                got = file.readinto(buffer[:CHUNK])
                if not got:
                    raise CheckpointError(f"{self.path} ends inside {self.name}")
                buffer = buffer[got:]
        return out


def open_folder(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder's model.safetensors, or of the files that its index names.

    Raises CheckpointError naming the file, for a header that does not fit its file, or as `indexed` does.
    """
    if os.path.lexists(folder / INDEX):
        return indexed(folder, INDEX, FILE_NAME, read_header)
    return read_header(inside(folder, SINGLE))


def indexed(folder: Path, index: str, names: re.Pattern[str], read: Callable[[Path], Mapping[str, T]]) -> dict[str, T]:
    """Every tensor of the files that an index names.

    names: pattern of valid file names. read: reads a file's tensors. Raises CheckpointError for a file name that does
    not match, for a link that leaves the folder, and for a tensor that is not in the file that the index names.
    """
    values = parse_json(read_bytes(inside(folder, index), JSON_LIMIT), folder / index)
    where = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(where, dict):
        raise CheckpointError(f"{folder / index} has no weight_map")
    for file in where.values():
        if not isinstance(file, str) or not names.fullmatch(file):
            kind = index.removesuffix(".index.json").rpartition(".")[2]
            raise CheckpointError(f"{folder / index} names {shown(file)}, which is not a {kind} file beside it")
    found: dict[str, T] = {}
    for file in sorted(set(where.values())):
        for name, stored in read(inside(folder, file)).items():
            if where.get(name) != file:
                raise CheckpointError(f"{folder / file} holds {shown(name)}, which {index} does not place there")
            found[name] = stored
    if missing := sorted(set(where) - set(found)):
        raise CheckpointError(f"{folder / index} names {shown(missing[0])}, which is not in {where[missing[0]]}")
    return found


def inside(folder: Path, name: str) -> Path:
    """The file, or the target of its link if that is in the store of a Hugging Face cache. Raises CheckpointError."""
    path = folder / name
    if not path.is_symlink():
        return path
    real = path.resolve()
    if real.parent != (folder / ".." / ".." / "blobs").resolve():
        raise CheckpointError(f"{path} is a symbolic link to {real}, out of its folder: copy the file there")
    return real


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file. Raises CheckpointError unless they fill the file without gaps or overlaps."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise CheckpointError(f"{path} is not a safetensors file: it has {size:,} bytes, its header {length:,}")
        values = parse_json(file.read(length), path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: the header is not an object")
    values.pop("__metadata__", None)
    found, spans = {}, []
    for name, value in values.items():
        stored, span = _parse(path, name, value, 8 + length)
        found[name] = stored
        spans.append(span)
    position = 0
    for start, stop in sorted(spans):
        if start != position:
            raise CheckpointError(f"{path}: tensors overlap or leave a gap at byte {position:,} of the data")
        position = stop
    if 8 + length + position != size:
        raise CheckpointError(f"{path} has {size:,} bytes, its header says {8 + length + position:,}: truncated?")
    return found


def _parse(path: Path, name: str, value: Any, data: int) -> tuple[Stored, tuple[int, int]]:
    def integers(key: str) -> list[int]:
        numbers = value.get(key) if isinstance(value, dict) else None
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise CheckpointError(f"{path}: {shown(name)} has no valid {key}")
        return numbers

    shape, offsets = integers("shape"), integers("data_offsets")
    dtype = DTYPES.get(value.get("dtype") if isinstance(value.get("dtype"), str) else "")
    if dtype is None:
        raise CheckpointError(f"{path}: {shown(name)} has the unknown dtype {shown(value.get('dtype'))}")
    fits = len(shape) <= MAX_DIMENSIONS and max(shape, default=0) <= MAX_ELEMENTS and len(offsets) == 2
    if not fits or offsets[1] - offsets[0] != prod(shape) * dtype.itemsize:
        what = f"shape {shown(shape)} and data_offsets {shown(offsets)} of {shown(name)}"
        raise CheckpointError(f"{path}: {what} do not agree")
    return Stored(path, name, tuple(shape), dtype, data + offsets[0]), (offsets[0], offsets[1])


def shards(infos: Sequence[TensorInfo]) -> dict[str, list[int]]:
    """{file to write: numbers of its tensors}, with files of about SHARD_BYTES."""
    found: list[list[int]] = [[]]
    for number, info in enumerate(infos):
        if found[-1] and sum(infos[n].size for n in found[-1]) + info.size > SHARD_BYTES:
            found.append([])
        found[-1].append(number)
    names = [f"model-{number + 1:05d}-of-{len(found):05d}.safetensors" for number in range(len(found))]
    return dict(zip(names if len(found) > 1 else [SINGLE], found, strict=True))


def header(tensors: Iterable[tuple[str, TensorInfo]]) -> tuple[bytes, int]:
    """The bytes of a file before the tensors' data, and the size of the data in bytes."""
    values: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, info in tensors:
        offsets = [position, position + info.size]
        values[name] = {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
        position += info.size
    text = json.dumps(values, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, position


def write_shards(folder: Path, tensors: list[tuple[str, TensorInfo, Callable[[], torch.Tensor]]]) -> None:
    """Writes tensors, given as (name, info, reader), as model.safetensors or as shards with an index.

    Each tensor is read just before it is written. Raises CheckpointError.
    """
    files = shards([info for _, info, _ in tensors])
    for name, shard in files.items():
        _write(folder / name, [tensors[number] for number in shard])
    if len(files) > 1:
        placed = {tensors[n][0]: name for name, shard in files.items() for n in shard}
        total = sum(info.size for _, info, _ in tensors)
        write_text(folder / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": placed}, indent=2))


def _write(path: Path, tensors: list[tuple[str, TensorInfo, Callable[[], torch.Tensor]]]) -> None:
    beginning, size = header((name, info) for name, info, _ in tensors)

    def chunks():
        yield memoryview(beginning)
        for _, _, read in tensors:
            data = memory(read())
            for start in range(0, len(data), CHUNK):
                yield data[start : start + CHUNK]

    write_file(path, chunks(), len(beginning) + size)
