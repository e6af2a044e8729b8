"""The file `best` beside a run's checkpoints, which names the one that held-out figures were best for."""

import logging
import secrets
from pathlib import Path

from megagpt.checkpoint.files import read_bytes, replace_text
from megagpt.checkpoint.format import STEP
from megagpt.errors import CheckpointError

log = logging.getLogger(__name__)

BEST = "best"


def read_best(directory: Path) -> Path | None:
    """The checkpoint that `best` names; None without that file. Raises CheckpointError when it names none."""
    pointer = directory / BEST
    if not pointer.exists() and not pointer.is_symlink():
        return None
    named = read_bytes(pointer, limit=64).decode(errors="replace").strip()
    if not STEP.fullmatch(named):
        raise CheckpointError(f"{pointer} holds {named!r}, which is not a checkpoint's name")
    if not (directory / named).is_dir():
        raise CheckpointError(f"{pointer} names {named}, which does not exist")
    return directory / named


def find_best(directory: Path) -> Path | None:
    """As `read_best`, but what is wrong with the file is logged at ERROR and it counts for nothing."""
    try:
        return read_best(directory)
    except CheckpointError as error:
        log.error("%s", error)
        return None


def write_best(directory: Path, name: str | None) -> None:
    """Name the checkpoint `name` the best; None: there is no best one any more."""
    if name is None:
        (directory / BEST).unlink(missing_ok=True)
    else:
        replace_text(directory / BEST, f"{name}\n", secrets.token_hex(4))
