"""What is read must be a file: a pipe may never begin, a device may never end, and a link may lead nowhere."""

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
    """What is there in place of a file, in words."""

    def __str__(self) -> str:
        return str(self.strerror)


def require_file(path: str | Path) -> Path:
    """`path`, to be opened next. Raises NotAFileError, or OSError where nothing is."""
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise NotAFileError(errno.ENOENT, f"a link to {path.readlink()}, where nothing is", str(path))
    mode = path.stat().st_mode
    if kind := next((name for is_kind, name in KINDS if is_kind(mode)), None):
        raise NotAFileError(errno.EINVAL, f"{kind}, not a file", str(path))
    return path
