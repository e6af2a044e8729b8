"""Read records of evaluation files in the usual formats."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megagpt.data.files import open_input, read_input
from megagpt.errors import ConfigError, DataError

FORMATS = ".jsonl, .ndjson, .json, .csv, .tsv, .txt (each also .gz) and .parquet"


class Record(NamedTuple):
    """One example of an evaluation."""

    number: int
    """Line or row of the file, or place in a JSON list, from 1."""
    value: Any
    """The record as read: an object, a row as a list of strings, or a line."""

    @property
    def text(self) -> str:
        """All strings of the record, in order. Copies of a quiz usually include its answers."""
        return "\n".join(_strings(self.value))


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of an evaluation file; its name decides the format.

    A record is a non-empty line of .jsonl, .ndjson or .txt, a row of .csv, .tsv (including the first) or .parquet, or
    an item of the list in .json. Raises DataError with file and line for a record that cannot be read: if it were left
    out, its text would stay in the corpus.
    """
    path = Path(path)
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _rows(path)
        return
    readers = {"jsonl": _lines, "ndjson": _lines, "json": _json, "csv": _csv, "tsv": _tsv, "txt": _text}
    reader = readers.get(name.rpartition(".")[2])
    if reader is None:
        raise DataError(f"{path}: evaluation files of this format cannot be read; the formats are {FORMATS}")
    yield from reader(path, _content(path))


def _content(path: Path) -> str:
    content = read_input(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8") from None


def _lines(path: Path, content: str) -> Iterator[Record]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield Record(number, json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None


def _json(path: Path, content: str) -> Iterator[Record]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # several sets have JSON lines in a .json file
        yield from _lines(path, content)
        return
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else [value]  # such as SQuAD's "data"
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield Record(number, item)


def _csv(path: Path, content: str, **dialect: Any) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # the default limit, 131,072 characters, is too small for documents
    reader = csv.reader(io.StringIO(content, newline=""), strict=True, **dialect)
    number = 0
    try:
        for number, row in enumerate(reader, 1):
            if any(cell.strip() for cell in row):
                yield Record(number, row)
    except csv.Error as error:
        raise DataError(f"{path}: row {number + 1}: {error}") from None


def _tsv(path: Path, content: str) -> Iterator[Record]:
    return _csv(path, content, delimiter="\t", quoting=csv.QUOTE_NONE)


def _text(path: Path, content: str) -> Iterator[Record]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield Record(number, line)


def _rows(path: Path) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(f'reading {path} needs pyarrow: pip install "megagpt[corpora]"') from None
    try:
        with open_input(path) as file:
            yield from (Record(number, row) for number, row in enumerate(pq.read_table(file).to_pylist(), 1))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
