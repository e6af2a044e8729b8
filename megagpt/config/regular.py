"""Checks that a path is a file before it is read: reading a pipe may block, and reading a device may never end."""

import errno
import stat
from pathlib import Path

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NotAFileError(OSError):
    """A path is not a file; the message says what it is instead."""

    def __str__(self) -> str:
        return str(self.strerror)


def require_file(path: str | Path) -> Path:
    """`path` as a Path, after checking that it is a file. Raises NotAFileError, or OSError when nothing is there."""
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise NotAFileError(errno.ENOENT, f"a link to {path.readlink()}, where nothing is", str(path))
    mode = path.stat().st_mode
    if kind := next((name for is_kind, name in KINDS if is_kind(mode)), None):
        raise NotAFileError(errno.EINVAL, f"{kind}, not a file", str(path))
    return path
