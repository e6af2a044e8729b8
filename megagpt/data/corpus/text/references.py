"""Read reference corpora: finished corpora whose documents are removed from a new corpus."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zstandard

from megagpt.data.corpus.job import read_report
from megagpt.data.files import write_atomic
from megagpt.errors import DataError

_FILE = "references.json"


def list_shards(folders: Sequence[str | Path]) -> list[str]:
    """Paths of the corpora's shards. Raises DataError if a folder has no complete corpus of `megagpt data corpus`."""
    shards = []
    for folder in map(Path, folders):
        report = read_report(folder)
        if report is None:
            raise DataError(f"--against {folder}: there is no report.json, so it is no corpus of `megagpt data corpus`")
        for path in (folder.absolute() / name for name in report["shards"]):
            if not path.is_file():
                raise DataError(f"--against {folder}: it has no {path.name}, though its report lists it")
            shards.append(str(path))
    return shards


def save_list(work: Path, shards: list[str]) -> None:
    """Write the list to the work folder, for `read`."""
    write_atomic(work / _FILE, json.dumps(shards).encode())


def read(work: Path, number: int) -> Iterator[dict[str, Any]]:
    """The documents of shard `number` of the list. Raises DataError when it cannot be read."""
    path = Path(json.loads((work / _FILE).read_bytes())[number])
    opened = {".zst": zstandard.open, ".gz": gzip.open}.get(path.suffix, open)
    line = 0
    try:
        with opened(path, "rt", encoding="utf-8", newline="\n") as file:
            for line, text in enumerate(file, 1):
                record = json.loads(text)
                if not isinstance(record.get("text"), str):
                    raise DataError(f"{path}:{line}: there is no text in this document")
                yield record
    except (OSError, EOFError, ValueError, AttributeError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: cannot be read after line {line}: {error}") from None


def name_of(record: dict[str, Any]) -> str:
    """The name of a document of a corpus of any kind."""
    return str(record.get("source") or record.get("path") or "a document without a name")
