"""Files that appear whole or not at all."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from megagpt.errors import DataError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write that takes the name `path`, on disk, only when the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, *content: bytes | memoryview) -> None:
    """Write the pieces of `content`, one after the other, to `path`. Raises DataError when that fails."""
    with atomic_file(path) as file:
        for piece in content:
            file.write(piece)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def sync_folder(path: Path) -> None:
    """Put renames in the folder `path` on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working in `folder`, until this one ends in whatever way. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise DataError(f"another process is making this corpus: it works in {folder}") from None
    except OSError as error:
        raise DataError(f"cannot work in {folder}: {error}") from error
