"""One writer a folder: a lock that the kernel releases when its holder dies, in a file that says who holds it."""

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
    """Exclusive right of one process to write in `folder`.

    The lock is POSIX's: it belongs to the process, not to its forked children, and on a shared file system it holds
    between hosts. So a lease whose holder was killed is free at once, with no guess from times or process numbers.
    Raises CheckpointError naming the holder when another process that is alive has it.
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
        """Lets another run write here."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
