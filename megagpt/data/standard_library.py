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


def documents(root: Path = ROOT) -> Iterator[dict[str, str]]:
    """One record per non-empty file in UTF-8."""
    for path in source_files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few of the library's tests are in other encodings on purpose
        if text.strip() and "\0" not in text:
            yield {"path": path.relative_to(root).as_posix(), "text": text}
