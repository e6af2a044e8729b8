"""Names of the inputs of a corpus in its report."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from megagpt.errors import DataError


def roots(inputs: Sequence[str | Path]) -> Iterator[tuple[Path, str]]:
    """(absolute path, name in the report) of each input: the last part of its path, or all of it if two share a name.

    Links are not followed. Raises DataError when an input does not exist.
    """
    paths = [Path(os.path.abspath(item)) for item in inputs]  # noqa: PTH100 (resolve would follow links)
    names = [path.name for path in paths]
    for item, path in zip(inputs, paths, strict=True):
        if not path.exists():
            raise DataError(f"{item}: no such file or folder")
        yield path, Path(item).as_posix() if names.count(path.name) > 1 else path.name
