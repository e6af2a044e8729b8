"""A lock that allows one writer per folder. The kernel releases it when its holder ends; the file names the holder."""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from megagpt.errors import CheckpointError

log = logging.getLogger(__name__)

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """Exclusive right of one process to write into `folder`.

    It is a POSIX lock: it belongs to the process and not to forked children, and on a shared file system it also works
    between hosts. When the holder is killed, the lock is free at once, without guesses from times or process ids.
    Raises CheckpointError that names the holder when another live process holds the lock.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".run_lock.json"
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                holder = os.read(self.handle, 4096).decode(errors="replace").strip() or "unknown"
                os.close(self.handle)
                raise CheckpointError(
                    f"another run is writing checkpoints in {folder}: {holder}. "
                    f"Give this run another run_name, or stop that one first"
                ) from error
            log.warning("%s cannot lock files: two runs in this folder would not notice each other", folder)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Releases the lock."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
