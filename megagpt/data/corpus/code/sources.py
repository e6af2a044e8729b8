"""The input files of a corpus: in folders, git checkouts (tracked files only) and archives."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from megagpt.data.corpus.code import licences
from megagpt.data.corpus.code.archives import members
from megagpt.data.corpus.code.languages import may_be
from megagpt.data.corpus.code.source_file import LICENCE_BYTES, SourceFile, Unreadable, clean
from megagpt.data.corpus.roots import roots
from megagpt.errors import DataError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Extensions of the archives that are read."""


class Unit(NamedTuple):
    """An entry of the input: a file, an archive of files, or something that can only be reported."""

    kind: Literal["file", "archive", "refused"]
    path: str
    root: str
    """The input folder; the search for licence files ends there."""
    name: str
    bytes: int
    modified: int = 0
    """Time of modification, in nanoseconds since 1970."""
    refusal: tuple[str, str] | None = None

    def work(self, languages: Sequence[str], max_bytes: int) -> int:
        """Approximate number of bytes to filter; 0 if the name shows another language."""
        if self.kind == "archive":
            return self.bytes
        wanted = self.kind == "file" and self.bytes <= max_bytes and not may_be(self.path).isdisjoint(languages)
        return self.bytes if wanted else 0


def list_units(inputs: Sequence[str | Path]) -> list[Unit]:
    """All files and archives in `inputs`, in the order given and by name within each, without repetition.

    In a folder that is a git checkout, at any depth, only tracked files count. Links are not followed.
    Raises DataError when an input does not exist or holds no file.
    """
    units: dict[str, Unit] = {}
    for item, (root, shown) in zip(inputs, roots(inputs), strict=True):
        found = _in_folder(root, shown) if root.is_dir() else [_unit(root.resolve(), root.resolve().parent, shown)]
        before = len(units)
        for unit in found:
            units.setdefault(unit.path, unit)
        if len(units) == before:
            raise DataError(f"{item}: there is no file in it, or only files of an earlier input")
    return list(units.values())


def _in_folder(root: Path, shown: str) -> Iterator[Unit]:
    for path, problem in _walk(root):
        name = f"{shown}/{path.relative_to(root).as_posix()}"
        if problem:
            yield _refused(path, root, name, "unreadable", problem)
        else:
            yield _unit(path, root, name)


def _unit(path: Path, root: Path, name: str) -> Unit:
    try:
        if path.is_symlink() or not path.is_file():
            return _refused(path, root, name, "not a regular file", "link" if path.is_symlink() else "special file")
        about = path.stat()
    except OSError as error:
        return _refused(path, root, name, "unreadable", error.strerror)
    kind = "archive" if path.name.lower().endswith(ARCHIVES) else "file"
    return Unit(kind, str(path), str(root), clean(name), about.st_size, about.st_mtime_ns)


def _refused(path: Path, root: Path, name: str, rule: str, reason: str) -> Unit:
    return Unit("refused", str(path), str(root), clean(name), bytes=0, refusal=(rule, reason))


def _walk(root: Path) -> Iterator[tuple[Path, str | None]]:
    """(path, None) for files below `root`; (path, problem) for folders that cannot be listed."""
    problems: list[OSError] = []
    for parent, folders, files in os.walk(root, onerror=problems.append):
        here = Path(parent)
        if ".git" in folders or ".git" in files:
            folders.clear()
            yield from _tracked(here)
            continue
        folders.sort()
        links = [name for name in folders if (here / name).is_symlink()]
        yield from ((here / name, None) for name in sorted(files + links))
    yield from ((Path(error.filename), error.strerror) for error in problems)


def _tracked(checkout: Path) -> Iterator[tuple[Path, str | None]]:
    # A hostile checkout's configuration could name a program as fsmonitor, which git would run.
    command = ["git", "-c", "core.fsmonitor=false", "-c", "safe.directory=*", "-C", checkout, "ls-files", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise DataError(f"{checkout} is a git checkout, and git is not installed to list its files") from None
    except subprocess.CalledProcessError as error:
        yield checkout, f"not a git checkout that git can read: {error.stderr.decode(errors='replace').strip()}"
        return
    for name in sorted({name for name in os.fsdecode(listed).split("\0") if name}):
        path = checkout / name
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)  # a submodule
        elif path.is_symlink() or path.exists():
            yield path, None


def files_of(unit: Unit, max_bytes: int) -> Iterator[SourceFile]:
    """The file of `unit`, or the files in it. Files in archives are read up to `max_bytes` + 1 bytes."""
    if unit.kind == "refused":
        yield SourceFile.refused(unit.name, unit.bytes, *unit.refusal)
    elif unit.kind == "archive":
        yield from members(unit.path, unit.name, max_bytes)
    else:
        path = Path(unit.path)
        yield SourceFile(
            unit.name, unit.bytes, lambda: _read(path), lambda: _nearest_licence(path.parent, Path(unit.root))
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable("unreadable", error.strerror) from None


BORDERS = {"site-packages", "dist-packages", "node_modules", "third_party", "vendor", "_vendor"}
"""Folders of third-party code: a licence above them does not apply to their content."""


@cache
def _nearest_licence(folder: Path, root: Path) -> str | None:
    found = _licence_in(folder)
    ends = found or folder == root or root not in folder.parents or folder.name.lower() in BORDERS
    return found if ends else _nearest_licence(folder.parent, root)


def _licence_in(folder: Path) -> str | None:
    texts = []
    with suppress(OSError):  # an unreadable licence counts as none, which allows nothing
        for path in sorted(folder.iterdir()):
            if licences.is_licence_file(path.name) and path.is_file():
                with path.open("rb") as file:
                    texts.append(file.read(LICENCE_BYTES).decode(errors="replace"))
    return licences.combine(texts)
