"""Read records with their places from files: JSON lines, parquet, tables (csv, tsv) and plain text."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megagpt.data.preprocess import MAX_RECORD_MB
from megagpt.data.readers import FOLDER_PATTERNS, Block, Position, Rejection, Source, chunks, find_sources
from megagpt.errors import ConfigError, DataError

TABLES = (".csv", ".tsv")
"""Suffixes of tables."""

PATTERNS = (*FOLDER_PATTERNS, *(f"*{table}{packed}" for table in TABLES for packed in ("", ".gz", ".zst")))
"""Default patterns of the files to read in a folder of labelled pairs."""

LARGEST_TABLE = 4 << 30
"""Largest size of a table or a JSON array in bytes; they are held in memory."""

Progress = Callable[[int], Any]
"""Called with the number of stored bytes read since the last call."""


class Record(NamedTuple):
    """One record."""

    path: str
    number: int
    """Line, row or record of the file, from 1."""
    value: Any
    """The value of a line of JSON, a dict of parquet columns, a list of a table's cells, or the text of a file."""

    @property
    def place(self) -> str:
        """ "path:number", for messages and for `document` of pairs."""
        return f"{self.path}:{self.number}"


def read_records(
    inputs: Sequence[str | Path],
    *,
    patterns: Sequence[str] = FOLDER_PATTERNS,
    max_record_mb: float = MAX_RECORD_MB,
    progress: Progress = lambda count: None,
) -> Iterator[Record | Rejection]:
    """The records of files, folders and globs (see readers.find_sources), in order.

    A rejection stands in place of each record that cannot be read. Raises DataError for a missing input, ConfigError
    when a library is not installed.
    """
    for source in find_sources(inputs, patterns):
        yield from _records(source, int(max_record_mb * 1e6), progress)


def inputs_bytes(inputs: Sequence[str | Path], patterns: Sequence[str] = FOLDER_PATTERNS) -> int:
    """Total size of the stored files of `inputs`, in bytes."""
    return sum(source.bytes for source in find_sources(inputs, patterns))


def table_kind(path: str) -> str | None:
    """ ".csv" or ".tsv" for the name of a table, compressed or not; None for another name."""
    name = path.lower().removesuffix(".gz").removesuffix(".zst")
    return next((end for end in TABLES if name.endswith(end)), None)


def _records(source: Source, limit: int, progress: Progress) -> Iterator[Record | Rejection]:
    if source.format == "parquet":
        yield from _rows(source, progress)
        return
    if table_kind(source.path):
        limit = LARGEST_TABLE  # a table is read whole, as one text
    if source.path.lower().removesuffix(".gz").removesuffix(".zst").endswith(".json"):
        yield from _array(source, progress)
        return
    for chunk in chunks([source], "", limit, Position()):
        for item in chunk.items:
            if isinstance(item, Rejection):
                yield item
            elif item.format == "jsonl":
                yield from _json_lines(item)
            elif table_kind(source.path):
                yield from _cells(item)
            else:
                yield from _text(item)
        progress(chunk.stored_bytes)


def _json_lines(block: Block) -> Iterator[Record | Rejection]:
    for number, line in enumerate(block.records.removesuffix(b"\n").split(b"\n"), block.first_line):
        try:
            if not line.strip():
                yield Rejection(block.path, number, "empty")
                continue
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair, which cannot be written
            yield Record(block.path, number, value)
        except UnicodeError as error:
            yield Rejection(block.path, number, "invalid UTF-8", str(error.reason))
        except (ValueError, RecursionError) as error:
            yield Rejection(block.path, number, "invalid JSON", str(error))


def _array(source: Source, progress: Progress) -> Iterator[Record | Rejection]:
    """The elements of a JSON array of records; if the file is not an array, its JSON lines."""
    blocks: list[Block] = []
    for chunk in chunks([source], "", LARGEST_TABLE, Position()):
        for item in chunk.items:
            if isinstance(item, Rejection):
                yield item
            else:
                blocks.append(item)
        progress(chunk.stored_bytes)
    content = b"".join(block.records for block in blocks)
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, list) and not (values and isinstance(values[0], str)):
        yield from (Record(source.path, number, value) for number, value in enumerate(values, 1))
        return
    for block in blocks:
        yield from _json_lines(block)


def _text(block: Block) -> Iterator[Record | Rejection]:
    try:
        text = block.records.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Rejection(block.path, 1, "invalid UTF-8", f"at byte {error.start}")
        return
    if "\0" in text or not text.strip():
        yield Rejection(block.path, 1, "NUL" if "\0" in text else "empty")
    else:
        yield Record(block.path, 1, text)


def _cells(block: Block) -> Iterator[Record | Rejection]:
    """The rows of a table as lists of cells. The STS benchmark's files are named .csv but have tabs."""
    texts = [record for record in _text(block) if isinstance(record, Record)]
    if not texts:
        yield from _text(block)
        return
    lines = texts[0].value.split("\n")
    tabs = table_kind(block.path) == ".tsv" or lines[0].count("\t") >= 4
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"delimiter": ",", "strict": True}
    csv.field_size_limit(LARGEST_TABLE)  # the default is 131,072 characters
    rows = csv.reader((f"{line}\n" for line in lines), **style)
    done = 0
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                yield Record(block.path, done + 1, row)
            done = rows.line_num
    except csv.Error as error:
        yield Rejection(block.path, done + 1, "invalid table", f"{error}; what follows in it is lost")


def _rows(source: Source, progress: Progress) -> Iterator[Record | Rejection]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(f'reading {source.path} needs pyarrow: pip install "megagpt[corpora]"') from None
    done = 0
    try:
        with pq.ParquetFile(source.path) as file:
            for batch in file.iter_batches(256):
                for row in batch.to_pylist():
                    done += 1
                    yield Record(source.path, done, row)
                progress(source.bytes * batch.num_rows // max(1, file.metadata.num_rows))
    except pa.ArrowException as error:
        yield Rejection(source.path, done + 1, "damaged file", f"{error}; what follows in it is lost")
    except OSError as error:
        raise DataError(f"cannot read {source.path}: {error.strerror or error}") from error
