"""What data is, by its content: where it lies and how it is called does not matter.

A fingerprint reads little of large files, so that a run can look at all of its data before it starts: the sizes, and
blocks at even distances. It finds files that were exchanged, cut off or blanked, and not every single byte that was
changed; `megagpt plan --check --hashes` reads all of them.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megagpt.config.inputs import inputs
from megagpt.config.schema import Config
from megagpt.data.companions import read_companions
from megagpt.data.files import open_input
from megagpt.data.indexed import corpus_files, read_about
from megagpt.errors import DataError

BLOCK = 65_536
BLOCKS = 64
"""A file is read in so many blocks of so many bytes, at most."""

PUT_BACK = "Put it back; the same command then goes on from the newest checkpoint"

WEIGHTS = ("checkpoint.load", "stage.reward_model", "ppo.reward_model", "ppo.critic")
"""Inputs that are checkpoints; of them `stages.run_checkpoints` knows the content."""

LOOK_SECONDS = 1.0
"""How often a file that is read all the time is looked at."""

Identity = dict[str, dict[str, str]]
"""`path` and `content`, a fingerprint, of each input by its name, such as data.corpora[0]; of weights `checkpoint` too,
the folder that was found at the path, and of a tokenizer `companions`, a fingerprint of the files beside it."""


def fingerprint(*paths: Path) -> str:
    """SHA-256, in hexadecimal digits, of the sizes and of blocks of some files. Raises DataError."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open_input(path) as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{size},".encode())
                last = max(0, size - BLOCK)
                places = range(0, size, BLOCK) if size <= BLOCK * BLOCKS else _evenly(last)
                for place in places:
                    digest.update(os.pread(file.fileno(), BLOCK, place))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def _evenly(last: int) -> list[int]:
    return [last * place // (BLOCKS - 1) for place in range(BLOCKS)]


def identity(config: Config) -> Identity:
    """Path and fingerprint of everything that a run's stage reads, but for other runs. Raises DataError."""
    found: Identity = {}
    counts: dict[str, int] = {}
    for item in inputs(config):
        if item.kind == "run":
            continue
        place = counts[item.field] = counts.get(item.field, -1) + 1
        name = (
            f"{item.field}[{place}]" if item.field.split(".")[0] == "data" and item.kind != "tokenizer" else item.field
        )
        found[name] = {"path": item.path, "content": _content(item.path, item.kind)}
        if item.kind == "tokenizer":
            found[name]["companions"] = _companions(item.path)
    return found


def _content(path: str, kind: str) -> str:
    if kind != "corpus":
        return fingerprint(Path(path))
    binary, index, _ = corpus_files(path)
    # The hash that was made when the corpus was: it tells corpora apart that differ between the blocks.
    made = read_about(path).get("bin_sha256", "")
    return hashlib.sha256(f"{fingerprint(binary, index)}{made}".encode()).hexdigest()


def _companions(tokenizer: str) -> str:
    """A fingerprint of what lies beside a tokenizer and says how it is used, such as a chat template."""
    with open_input(tokenizer) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(read_companions(tokenizer, sha256).dump(None).encode()).hexdigest()


class WatchedFile:
    """A file that is read for as long as a run lasts, and must stay what it was when the run opened it."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises DataError."""
        self.path = path
        self._file = open_input(path)
        self._known, self._content = self._look(), fingerprint(path)
        self._looked = time.monotonic()

    def read(self, place: int, count: int, dtype: np.dtype) -> np.ndarray:
        """[count] numbers from byte `place` on. Raises DataError where the file is no longer what it was."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self.check()
        wanted = count * dtype.itemsize
        content = os.pread(self._file.fileno(), wanted, place)
        while 0 < len(content) < wanted and (
            more := os.pread(self._file.fileno(), wanted - len(content), place + len(content))
        ):
            content += more
        if len(content) < wanted:
            size = os.fstat(self._file.fileno()).st_size
            raise DataError(
                f"{self.path} ends at byte {size}, before what is read from it: it was cut off while the run reads it. "
                f"{PUT_BACK}"
            )
        return np.frombuffer(content, dtype)

    def check(self) -> None:
        """Raise DataError where the file at this path has other content than when it was opened."""
        self._looked, now = time.monotonic(), self._look()
        if now == self._known:
            return
        if now[0] != self._known[0] or fingerprint(self.path) != self._content:
            raise DataError(f"{self.path} was changed or exchanged while the run reads it. {PUT_BACK}")
        self._known = now  # touched, or a copy of itself

    def _look(self) -> tuple[int, int, int]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise DataError(f"{self.path} is gone while the run reads it ({error.strerror}). {PUT_BACK}") from None
        return status.st_size, status.st_ino, status.st_mtime_ns


def repeated(found: Identity) -> list[str]:
    """A sentence for each input of a list of data whose content another one of the list has, under whatever name."""
    first: dict[tuple[str, str], str] = {}
    sentences = []
    for name, known in found.items():
        field, _, place = name.partition("[")
        if not place:
            continue
        other = first.setdefault((field, known["content"]), name)
        if other != name:
            both = f"{name} ({known['path']}) has the content of {other} ({found[other]['path']})"
            sentences.append(f"{both}, and each sample would be learnt twice: list it once")
    return sentences


def changes(before: Identity, now: Identity) -> Sequence[str]:
    """A sentence for each input whose content is not what it was; those that only one side has are left out."""
    found = []
    for name in now:
        other = now[name].get("companions")
        if name in before and before[name]["content"] != now[name]["content"]:
            path, was = now[name]["path"], before[name].get("checkpoint", before[name]["path"])
            kind = "weights" if name in WEIGHTS else "data"
            source = f" (from {was})" if was != path else ""
            found.append(f"{name} ({path}) holds other {kind} than when the run was started{source}")
        elif name in before and before[name].get("companions", other) != other:
            found.append(
                f"{name} ({now[name]['path']}) has other files beside it, such as its chat template, than when the run"
                " was started"
            )
    return found
