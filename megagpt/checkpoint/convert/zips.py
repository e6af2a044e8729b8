"""The zip files of `torch.save`: checks the places of their entries, and writes such files tensor by tensor."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from megagpt.checkpoint.files import CHUNK
from megagpt.checkpoint.format import memory
from megagpt.errors import CheckpointError

DIRECTORY_LIMIT = 16 << 20
"""Largest directory of a zip file that is read, in bytes: enough for 200,000 tensors."""
LOCAL_HEADER = struct.Struct("<4s22xHH")
ALIGNMENT = 64
STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
LOCAL_MARK = b"PK\x03\x04"


class Window(io.RawIOBase):
    """A part of a file that behaves like a separate file."""

    def __init__(self, file: BinaryIO, path: Path, start: int, length: int | None):
        size = os.fstat(file.fileno()).st_size
        self.path = path
        self.file, self.first, self.size, self.at = file, start, size - start if length is None else length, 0
        if start < 0 or self.size < 0 or start + self.size > size:
            raise CheckpointError(f"{path}: bytes {start}..{start + self.size} lie outside of the file")

    def seekable(self) -> bool:
        """Always true."""
        return True

    def readable(self) -> bool:
        """Always true."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.IOBase.seek`."""
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def tell(self) -> int:
        """See `io.IOBase.tell`."""
        return self.at

    def read(self, count: int = -1) -> bytes:
        """See `io.RawIOBase.read`. Reads up to the end of the part. Raises CheckpointError above DIRECTORY_LIMIT."""
        left = max(0, self.size - self.at)
        count = left if count is None or count < 0 else min(count, left)
        if count > DIRECTORY_LIMIT:
            raise CheckpointError(
                f"{self.path}: a list of entries of {count:,} bytes; at most {DIRECTORY_LIMIT:,} are read"
            )
        self.file.seek(self.first + self.at)
        data = self.file.read(count)
        self.at += len(data)
        return data


class Entry(NamedTuple):
    """Place of an entry's data in a zip file, in bytes."""

    start: int
    size: int
    crc: int
    """CRC-32 of the data; 0 if none was computed, as after `torch.serialization.set_crc32_options(False)`."""


def entries(window: Window, path: Path) -> dict[str, Entry]:
    """{name: entry} of a zip file; the data of the entries is not read. Raises CheckpointError."""
    try:
        infos = zipfile.ZipFile(window).infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is cut or corrupt: {error}") from error
    found: dict[str, Entry] = {}
    for info in infos:
        window.seek(info.header_offset)
        header = window.read(LOCAL_HEADER.size)
        mark, name_size, extra_size = LOCAL_HEADER.unpack(header) if len(header) == LOCAL_HEADER.size else (b"", 0, 0)
        start = info.header_offset + LOCAL_HEADER.size + name_size + extra_size
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise CheckpointError(f"{path}: an entry is compressed or encrypted; torch.save stores entries as they are")
        if mark != LOCAL_MARK or start + info.file_size > window.size or info.filename in found:
            raise CheckpointError(f"{path}: an entry is there twice or lies outside of the file")
        found[info.filename] = Entry(start, info.file_size, info.CRC)
    for before, after in pairwise(sorted(entry for entry in found.values() if entry.size)):
        if before.start + before.size > after.start:
            raise CheckpointError(f"{path}: entries of the zip file overlap")
    return found


@dataclass(frozen=True)
class Lazy:
    """A tensor that is read just before it is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Iterable[torch.Tensor]]
    """Yields the tensor's data in parts, in row-major order."""


def save(path: Path, value: Any) -> None:
    """Writes a new file that `torch.load` can read. `Lazy` tensors in `value` are read and written one by one.

    Raises OSError, or CheckpointError when a tensor has not the size that its shape says.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol=2)
    pickler.dump(value)
    with path.open("xb") as file, zipfile.ZipFile(file, "w") as archive:
        _write(archive, "data.pkl", len(buffer.getvalue()), [buffer.getbuffer()])
        _write(archive, "byteorder", len(b"little"), [memoryview(b"little")])
        for number, tensor in enumerate(pickler.tensors):
            size = torch.Size(tensor.shape).numel() * tensor.dtype.itemsize
            _write(archive, f"data/{number}", size, map(_memory, tensor.read()))
        _write(archive, "version", len(b"3\n"), [memoryview(b"3\n")])


def _memory(tensor: torch.Tensor) -> memoryview:
    return memory(tensor.contiguous())


def _write(archive: zipfile.ZipFile, name: str, size: int, parts: Iterable[memoryview]) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")
    begin = archive.start_dir + LOCAL_HEADER.size + len(info.filename) + 4
    large, written = size >= zipfile.ZIP64_LIMIT, 0
    padding = -(begin + (20 if large else 0)) % ALIGNMENT  # aligned, so that readers can map the data into memory
    info.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    with archive.open(info, "w", force_zip64=large) as entry:
        for data in parts:
            written += len(data)
            for start in range(0, len(data), CHUNK):
                entry.write(data[start : start + CHUNK])
            del data  # frees it before the next part is read
    if written != size:
        raise CheckpointError(f"{archive.filename}: {name} has {written:,} bytes where {size:,} were announced")


class _Storage:
    def __init__(self, number: int, tensor: Lazy):
        self.number, self.tensor = number, tensor


class _Pickler(pickle.Pickler):
    """Pickles `Lazy` tensors as torch's tensors, and collects them in the order of their storages' names."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tensors: list[Lazy] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Lazy):
            return NotImplemented
        self.tensors.append(value)
        storage = _Storage(len(self.tensors) - 1, value)
        stride = torch.empty(value.shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (storage, 0, value.shape, stride, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        kind = STORAGES[value.tensor.dtype]
        return "storage", kind, str(value.number), "cpu", torch.Size(value.tensor.shape).numel()
