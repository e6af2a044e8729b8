"""The file `best` in a run's folder of checkpoints, which names the checkpoint with the best held-out metric."""

import logging
import secrets
from pathlib import Path

from megagpt.checkpoint.files import read_bytes, replace_text
from megagpt.checkpoint.format import STEP
from megagpt.errors import CheckpointError

log = logging.getLogger(__name__)

BEST = "best"


def read_best(directory: Path) -> Path | None:
    """The checkpoint that `best` names; None if there is no such file. Raises CheckpointError for a wrong name."""
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
    """Like `read_best`, but a wrong file is logged at ERROR and ignored."""
    try:
        return read_best(directory)
    except CheckpointError as error:
        log.error("%s", error)
        return None


def write_best(directory: Path, name: str | None) -> None:
    """Write the name of the best checkpoint; None removes the file. Raises CheckpointError."""
    if name is None:
        (directory / BEST).unlink(missing_ok=True)
    else:
        replace_text(directory / BEST, f"{name}\n", secrets.token_hex(4))
