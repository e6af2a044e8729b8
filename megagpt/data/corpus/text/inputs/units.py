"""List the input files of a corpus of text, with their formats."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from megagpt.data.corpus.code.source_file import clean
from megagpt.data.corpus.roots import roots
from megagpt.errors import ConfigError, DataError

Kind = Literal["web", "wiki", "books", "articles"]
Format = Literal["warc", "jsonl", "parquet", "html", "text", "dump", "epub"]

FORMATS: dict[Kind, tuple[Format, ...]] = {
    "web": ("warc", "parquet", "jsonl", "html"),
    "wiki": ("dump", "jsonl"),
    "books": ("text", "epub", "jsonl"),
    "articles": ("parquet", "jsonl", "text", "html"),
}
"""Formats that are read for each kind of corpus."""

_ENDINGS: dict[Format, tuple[str, str]] = {
    "warc": (r"\.(warc|wet)(\.gz)?", ".warc, .wet (.gz)"),
    "jsonl": (r"\.(jsonl|ndjson|json)(\.gz|\.zst)?", ".jsonl, .ndjson, .json (.gz, .zst)"),
    "parquet": (r"\.parquet", ".parquet"),
    "html": (r"\.(html|htm|xhtml)(\.gz|\.zst)?", ".html, .htm, .xhtml (.gz, .zst)"),
    "text": (r"\.(txt|text)(\.gz|\.zst)?", ".txt, .text (.gz, .zst)"),
    "dump": (r"\.xml(-p\d+p\d+)?(\.bz2|\.gz)?", ".xml (.bz2, .gz), and parts as .xml-p1p41242.bz2"),
    "epub": (r"\.epub", ".epub"),
}
"""Endings of file names for each format: a pattern, and a description for messages."""


class Unit(NamedTuple):
    """A file of the input, or an entry that cannot be read and is only reported."""

    path: str
    name: str
    """The input's name, then the path in it."""
    bytes: int
    modified: int
    """Time of modification, in nanoseconds since 1970."""
    format: Format | None
    """None if it is not read; see `refusal`."""
    refusal: tuple[str, str] | None = None
    """(rule, reason) of a file that is not read, as in Broken."""


def list_units(kind: Kind, inputs: Sequence[str | Path]) -> list[Unit]:
    """All files in `inputs`, in the order given and by name within each, without repetition.

    Links are not followed. A file in a folder whose format `kind` does not read is a unit with a refusal, so that it is
    counted. Raises ConfigError for an unknown kind; DataError when an input does not exist, is a file of another
    format, or is a folder without a file to read.
    """
    if kind not in FORMATS:
        raise ConfigError(f"no such kind of text: {kind!r}; there are {', '.join(get_args(Kind))}")
    units: dict[str, Unit] = {}
    for item, (root, shown) in zip(inputs, roots(inputs), strict=True):
        found = list(_in_folder(kind, root, shown)) if root.is_dir() else [_unit(kind, root.resolve(), shown)]
        if not any(unit.format for unit in found):
            read = "; ".join(_ENDINGS[form][1] for form in FORMATS[kind])
            what = "there is no file in it that is" if root.is_dir() else "it is not"
            raise DataError(f"{item}: {what} read for --kind {kind}, by its name: {read}")
        for unit in found:
            units.setdefault(unit.path, unit)
    return list(units.values())


def format_of(name: str) -> Format | None:
    """The format of a file by its name; None for a name of no known format."""
    return next((form for form, (ending, _) in _ENDINGS.items() if re.search(ending + r"\Z", name.lower())), None)


def _in_folder(kind: Kind, root: Path, shown: str) -> Iterator[Unit]:
    problems: list[OSError] = []
    for parent, folders, files in os.walk(root, onerror=problems.append):
        folders.sort()
        here = Path(parent)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted(files + links):
            yield _unit(kind, here / name, f"{shown}/{(here / name).relative_to(root).as_posix()}")
    for error in problems:
        path = Path(error.filename)
        name = f"{shown}/{path.relative_to(root).as_posix()}"
        yield Unit(str(path), clean(name), 0, 0, None, ("unreadable", error.strerror))


def _unit(kind: Kind, path: Path, name: str) -> Unit:
    path_and_name = str(path), clean(name)
    try:
        if path.is_symlink() or not path.is_file():
            what = "link" if path.is_symlink() else "special file"
            return Unit(*path_and_name, 0, 0, None, ("not a regular file", what))
        about = path.stat()
    except OSError as error:
        return Unit(*path_and_name, 0, 0, None, ("unreadable", error.strerror))
    form = format_of(path.name)
    if form in FORMATS[kind]:
        return Unit(*path_and_name, about.st_size, about.st_mtime_ns, form)
    reason = f"{form or 'unknown format'}, not read for --kind {kind}"
    return Unit(*path_and_name, about.st_size, about.st_mtime_ns, None, ("format", reason))
