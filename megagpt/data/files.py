"""Write files atomically, and read inputs only from regular files."""

import fcntl
import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from megagpt.config.regular import require_file
from megagpt.errors import DataError

MAX_RATIO, SLACK = 100, 64 << 20
"""A .gz file may expand to MAX_RATIO times its size plus SLACK bytes; beyond that it is a decompression bomb.
Compressed text usually has a fifth of its size."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write. It gets the name `path`, and is on disk, only when the block ends without an error.

    Raises DataError when it cannot be written.
    """
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


def open_input(path: str | Path, what: str = "") -> BinaryIO:
    """Open a file to read. Raises DataError when it is missing, cannot be read, or is not a regular file.

    Reading from a pipe or a device could wait forever or never end.
    what: expected content of the file, for the message
    """
    try:
        handle = os.open(require_file(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(_cannot_read(path, what, str(error.strerror))) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # it was replaced after `require_file` looked at it
        os.close(handle)
        raise DataError(_cannot_read(path, what, "it is no file any more"))
    return os.fdopen(handle, "rb")


def read_input(path: str | Path, what: str = "") -> bytes:
    """The content of a file, decompressed where its name ends in .gz. Raises DataError as `open_input`."""
    with open_input(path, what) as file:
        try:
            if Path(path).suffix.lower() != ".gz":
                return file.read()
            limit = MAX_RATIO * os.fstat(file.fileno()).st_size + SLACK
            content = gzip.GzipFile(fileobj=file).read(limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(_cannot_read(path, what, str(error))) from None
    if len(content) > limit:
        raise DataError(_cannot_read(path, what, f"it holds more than {limit:,} bytes: unpack it yourself"))
    return content


def read_text(path: str | Path, what: str = "", encoding: str = "utf-8") -> str:
    """The text of a file, see `read_input`; line ends are kept. Also raises DataError for bytes not in `encoding`."""
    try:
        return read_input(path, what).decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(_cannot_read(path, what, str(error))) from None


def _cannot_read(path: str | Path, what: str, why: str) -> str:
    return f"cannot read {what} from {path}: {why}" if what else f"cannot read {path}: {why}"


def file_size(path: str | Path) -> int:
    """Size of a file in bytes, without opening it. Raises DataError as `open_input`."""
    try:
        return require_file(path).stat().st_size
    except OSError as error:
        raise DataError(_cannot_read(path, "", str(error.strerror))) from None


def write_atomic(path: str | Path, *content: bytes | memoryview) -> None:
    """Write the pieces of `content`, one after the other, to `path`. Raises DataError when that fails."""
    with atomic_file(path) as file:
        for piece in content:
            file.write(piece)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises DataError when it cannot be read."""
    try:
        with open_input(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def sync_folder(path: Path) -> None:
    """Flush the entries of the folder `path` to disk, so that renames in it survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder` during the block. The system releases it if the process is killed.

    Raises DataError when another process holds it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise DataError(f"another process is making this corpus: it works in {folder}") from None
    except OSError as error:
        raise DataError(f"cannot work in {folder}: {error}") from error
