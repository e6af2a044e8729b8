"""Durable writing of files, and reading of untrusted files, which follows no symbolic links."""

import errno
import json
import os
import reprlib
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megagpt.errors import CheckpointError

CHUNK = 16 << 20
"""Number of bytes that are written, hashed or read at a time."""
JSON_LIMIT = 64 << 20
"""Largest JSON file that is read, in bytes."""
JSON_VALUES = 4 << 20
"""Most values in a JSON file that is read. In memory a value takes up to a hundred bytes, more than in the file."""

CAUSES = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the limit on file sizes (ulimit -f, or the file system's)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "the folder is gone",
}


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 (hexadecimal) of a file."""

    size: int
    sha256: str


def write_file(
    path: Path, chunks: Iterable[memoryview], size: int, proceed: Callable[[], bool] = lambda: True
) -> FileInfo:
    """Writes `size` bytes to a new file and makes them durable (fsync). A second thread computes the hash meanwhile.

    Args:
        path: must not exist.
        chunks: the bytes; each chunk is written before the next one is requested.
        size: total number of bytes.
        proceed: called before every chunk; if it returns false, writing stops.

    Raises: CheckpointError with the cause, the bytes needed and the bytes free.
    """
    digest, written = sha256(), 0
    try:
        with path.open("xb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
            for chunk in chunks:
                if not proceed():
                    raise CheckpointError(f"writing {path} was cancelled")
                hashed = hasher.submit(digest.update, chunk)
                written += len(chunk)
                while chunk:
                    chunk = chunk[file.write(chunk) :]
                hashed.result()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {explain(error, path.parent, size)}") from error
    if written != size:
        raise CheckpointError(f"wrote {written} bytes to {path} instead of {size}")
    return FileInfo(size, digest.hexdigest())


def write_text(path: Path, text: str) -> FileInfo:
    """Writes a new text file durably. Raises CheckpointError."""
    data = text.encode()
    return write_file(path, [memoryview(data)], len(data))


def replace_text(path: Path, text: str, token: str) -> None:
    """Writes a text file atomically: a crash leaves either the old or the new file. Raises CheckpointError.

    token: makes the name of the temporary file unique.
    """
    temporary = path.with_name(f"{path.name}.tmp-{token}")
    try:
        write_text(temporary, text)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot replace {path}: {explain(error, path.parent, len(text))}") from error


def sync_folder(path: Path) -> None:
    """Makes the entries of a folder durable (fsync). Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def explain(error: OSError, folder: Path, needed: int) -> str:
    """The cause of a failed write in words, with the number of bytes needed and of bytes free in its folder."""
    cause = CAUSES.get(error.errno or 0, error.strerror or str(error))
    try:
        free = f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        free = "an unknown number"
    return f"{cause} ({errno.errorcode.get(error.errno or 0, 'I/O error')}; {needed:,} bytes needed, {free} free)"


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for unbuffered reading. Raises CheckpointError if it is missing, a link or not a file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise CheckpointError(f"cannot open {path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"cannot read {path}: it is not a regular file")
    return os.fdopen(handle, "rb", buffering=0)


def read_bytes(path: Path, limit: int) -> bytes:
    """Reads a file of at most `limit` bytes. Raises CheckpointError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise CheckpointError(f"{path} has {size:,} bytes; at most {limit:,} are allowed")
        try:
            return file.read()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def parse_json(data: bytes, path: Path, values: int = JSON_VALUES) -> Any:
    """Parses JSON that was read from `path`, with at most `values` values and no key twice. Raises CheckpointError."""
    if sum(map(data.count, (b",", b"[", b"{"))) > values:
        raise CheckpointError(f"{path} may hold more than {values:,} values, and no more are read")
    try:
        return json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Duplicate keys are refused, because readers differ in which of the values they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key is there twice among {shown(list(found))}")
    return found


def shown(value: Any) -> str:
    """A short text of a value from an untrusted file, for messages; fast even for large or deeply nested values."""
    return f"{_SHORT.repr(value):.200}"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100


def allocate(shape: Sequence[int], dtype: torch.dtype, path: Path) -> torch.Tensor:
    """An uninitialised tensor whose shape comes from the untrusted file `path`.

    Raises CheckpointError when there is no memory for it.
    """
    try:
        return torch.empty(tuple(shape), dtype=dtype)
    except (MemoryError, OverflowError, RuntimeError, TypeError):
        raise CheckpointError(f"{path}: there is no memory for a tensor of shape {list(shape)}, {dtype}") from None


def check_file(path: Path, expected: FileInfo) -> None:
    """Raises CheckpointError unless the file has the expected size and SHA-256."""
    with open_regular(path) as file:
        check_size(path, os.fstat(file.fileno()).st_size, expected.size)
        try:
            digest = file_digest(file, sha256).hexdigest()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if digest != expected.sha256:
        raise CheckpointError(f"{path} is corrupt: its SHA-256 is {digest}, the manifest says {expected.sha256}")


def check_size(path: Path, size: int, expected: int) -> None:
    """Raises CheckpointError unless the two sizes of a file, in bytes, are equal."""
    if size != expected:
        raise CheckpointError(f"{path} has {size:,} bytes, the manifest says {expected:,}: truncated or replaced")


def remove(path: Path) -> None:
    """Removes a file, a link (not what it points to) or a folder. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
