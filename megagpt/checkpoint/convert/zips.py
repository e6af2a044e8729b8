"""The entries of the zip files that `torch.save` writes, checked: stored as they are, whole, apart from each other."""

import io
import os
import struct
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from megagpt.errors import CheckpointError

ENTRIES_LIMIT = 1 << 20
LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_MARK = b"PK\x03\x04"


class Window(io.RawIOBase):
    """A part of a file that looks like a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int | None):
        size = os.fstat(file.fileno()).st_size
        self.file, self.first, self.size, self.at = file, start, size - start if length is None else length, 0
        if start < 0 or self.size < 0 or start + self.size > size:
            raise CheckpointError(f"{file.name}: bytes {start}..{start + self.size} lie outside of the file")

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def tell(self) -> int:
        """As of any file."""
        return self.at

    def read(self, count: int = -1) -> bytes:
        """As of any file, up to the end of the part."""
        left = max(0, self.size - self.at)
        self.file.seek(self.first + self.at)
        data = self.file.read(left if count is None or count < 0 else min(count, left))
        self.at += len(data)
        return data


def entries(window: Window, path: Path) -> dict[str, tuple[int, int]]:
    """Where the data of every entry of a zip file lies: first byte and size. Raises CheckpointError."""
    try:
        infos = zipfile.ZipFile(window).infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is cut or corrupt: {error}") from error
    if len(infos) > ENTRIES_LIMIT:
        raise CheckpointError(f"{path} has {len(infos):,} entries; at most {ENTRIES_LIMIT:,} are read")
    found: dict[str, tuple[int, int]] = {}
    for info in infos:
        window.seek(info.header_offset)
        header = window.read(LOCAL_HEADER.size)
        mark, name_size, extra_size = LOCAL_HEADER.unpack(header) if len(header) == LOCAL_HEADER.size else (b"", 0, 0)
        start = info.header_offset + LOCAL_HEADER.size + name_size + extra_size
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise CheckpointError(f"{path}: an entry is compressed or encrypted; torch.save stores entries as they are")
        if mark != LOCAL_MARK or start + info.file_size > window.size or info.filename in found:
            raise CheckpointError(f"{path}: an entry is there twice or lies outside of the file")
        found[info.filename] = (start, info.file_size)
    for (first, size), (second, _) in pairwise(sorted(place for place in found.values() if place[1])):
        if first + size > second:
            raise CheckpointError(f"{path}: entries of the zip file overlap")
    return found
