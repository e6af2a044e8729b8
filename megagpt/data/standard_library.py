"""The Python standard library's source: a corpus that every machine with Python has."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(sysconfig.get_paths()["stdlib"])
"""Folder of the standard library of the running Python."""
SKIPPED = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data", "lib-dynload"}
"""Folders with other packages, or with tables rather than code."""
TESTS = {"test", "tests", "idle_test"}
ENOUGH = 12_000_000
"""Target size of the corpus in bytes of source."""
PACKAGES = Path(sysconfig.get_paths()["purelib"])
"""Folder of the packages that are installed for this Python."""
LONGEST = 200_000
"""Bytes of an installed package's longest file that counts as source: longer ones are mostly tables."""


def source_files(root: Path) -> list[Path]:
    """The library's source files in the order of names, then as many of its tests as are needed for ENOUGH bytes."""
    files = sorted(path for path in root.rglob("*.py") if not SKIPPED & set(path.relative_to(root).parts))
    chosen = [path for path in files if not TESTS & set(path.relative_to(root).parts)]
    size = sum(path.stat().st_size for path in chosen)
    for path in files:
        if size >= ENOUGH:
            break
        if path not in chosen:
            chosen.append(path)
            size += path.stat().st_size
    return chosen


def package_files(root: Path) -> list[Path]:
    """Source files of at most LONGEST bytes of all installed packages, by name."""
    return sorted(path for path in root.rglob("*.py") if path.stat().st_size <= LONGEST)


def documents(root: Path = ROOT) -> Iterator[dict[str, str]]:
    """One record per non-empty UTF-8 file of the standard library."""
    return _read(source_files(root), root)


def package_documents(root: Path = PACKAGES) -> Iterator[dict[str, str]]:
    """One record per non-empty UTF-8 source file of the installed packages."""
    return _read(package_files(root), root)


def _read(files: list[Path], root: Path) -> Iterator[dict[str, str]]:
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few of the library's tests are in other encodings on purpose
        if text.strip() and "\0" not in text:
            yield {"path": path.relative_to(root).as_posix(), "text": text}
