"""Read files in archives one by one, without writing to disk, and with a limit on the expanded size."""

import bz2
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from megagpt.data.corpus.code import licences
from megagpt.data.corpus.code.source_file import LICENCE_BYTES, SourceFile, Unreadable, clean

MAX_RATIO = 100
"""An archive may expand to MAX_RATIO times its size plus SLACK bytes; beyond that it is a decompression bomb.
Compressed source code has about a fifth of its size."""
SLACK = 10_000_000
"""Bytes to which even the smallest archive may expand."""

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # zipfile raises it for encrypted members
    NotImplementedError,
    ValueError,
)
_OPEN = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".tbz2": bz2.open, ".xz": lzma.open, ".txz": lzma.open}


class _Bomb(Exception):
    """An archive expands to more than it may."""


class _Member(NamedTuple):
    name: str
    bytes: int
    regular: bool
    read: Callable[[int], bytes]
    """Returns the given number of its first bytes."""


def unsafe(name: str) -> str | None:
    """The reason why a member of this name would be unsafe to extract; None if it stays below the target folder."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "path that leads out of the archive"
    return "no name" if not name.strip("./") else None


def members(path: str, shown: str, max_bytes: int) -> Iterator[SourceFile]:
    """The files in the archive at `path`; `SourceFile.refused` in place of each member that cannot be used.

    shown: name of the archive in reports
    max_bytes: a file is read up to one byte more than this
    """
    texts: dict[str, list[str]] = defaultdict(list)
    with suppress(_Bomb, *_DAMAGED):  # the second pass below meets the same error, and reports it
        for member in _open(path):
            where = PurePosixPath(member.name)
            if member.regular and not unsafe(member.name) and licences.is_licence_file(where.name):
                texts[str(where.parent)].append(member.read(LICENCE_BYTES).decode(errors="replace"))
    try:
        for member in _open(path):
            yield _source_file(member, f"{shown}/{clean(member.name)}", texts, max_bytes)
    except _Bomb as bomb:
        yield SourceFile.refused(shown, 0, "archive bomb", f"{bomb}; what follows in it is left out")
    except _DAMAGED as error:
        yield SourceFile.refused(shown, 0, "damaged archive", f"{error}; what follows in it is lost")


def _source_file(member: _Member, shown: str, texts: dict[str, list[str]], max_bytes: int) -> SourceFile:
    if problem := unsafe(member.name):
        return SourceFile.refused(shown, member.bytes, "unsafe path", problem)
    if not member.regular:
        return SourceFile.refused(shown, 0, "not a regular file", "link or special file")

    def read() -> bytes:
        try:
            return member.read(max_bytes + 1)
        except _Bomb as bomb:
            raise Unreadable("archive bomb", str(bomb)) from None
        except _DAMAGED as error:
            raise Unreadable("unreadable", str(error)) from None

    def licence() -> str | None:
        folders = map(str, PurePosixPath(member.name).parents)
        return next((licences.combine(texts[folder]) for folder in folders if folder in texts), None)

    return SourceFile(shown, member.bytes, read, licence)


def _open(path: str) -> Iterator[_Member]:
    return _zip_members(path) if path.lower().endswith(".zip") else _tar_members(path)


def _zip_members(path: str) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        allowance = _Allowance(path)

        def read(info: zipfile.ZipInfo, size: int) -> bytes:
            with archive.open(info) as file:
                content = file.read(size)
            allowance.spend(len(content))
            return content

        for info in archive.infolist():
            allowance.spend(0)  # raises if earlier members have used it up
            if not info.is_dir():
                kind = stat.S_IFMT(info.external_attr >> 16)
                yield _Member(
                    info.filename, info.file_size, kind in (0, stat.S_IFREG), lambda size, info=info: read(info, size)
                )


def _tar_members(path: str) -> Iterator[_Member]:
    opened = next((opener for suffix, opener in _OPEN.items() if path.lower().endswith(suffix)), open)
    with (
        opened(path, "rb") as raw,
        tarfile.open(fileobj=_Metered(raw, _Allowance(path)), mode="r|") as archive,
    ):
        for info in archive:
            if not info.isdir():
                yield _Member(
                    info.name, info.size, info.isreg(), lambda size, info=info: archive.extractfile(info).read(size)
                )
            archive.members = []  # otherwise tarfile keeps all members in memory


class _Allowance:
    """The number of bytes to which an archive may still expand."""

    def __init__(self, path: str):
        with open(path, "rb") as file:  # noqa: PTH123
            stored = file.seek(0, io.SEEK_END)
        self.limit = self.left = MAX_RATIO * stored + SLACK

    def spend(self, size: int) -> None:
        """Take `size` bytes of it. Raises _Bomb when fewer are left."""
        self.left -= size
        if self.left < 0:
            raise _Bomb(f"it expands to more than {self.limit:,} bytes")


class _Metered:
    """A file that takes every byte read from it from an allowance."""

    def __init__(self, file: BinaryIO, allowance: _Allowance):
        self.file, self.allowance = file, allowance

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        content = self.file.read(size)
        self.allowance.spend(len(content))
        return content
