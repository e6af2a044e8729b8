"""Read documents in records: lines of JSON, rows of parquet files."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megagpt.data.corpus.text.page import Broken, Page
from megagpt.data.readers import (
    READ_BYTES,
    ROWS,
    Position,
    Rejection,
    Source,
    chunks,
    documents,
    raw_records,
)
from megagpt.errors import ConfigError, DataError

URL = "url"
"""The field with a page's URL."""
METADATA = ("title", "author", "date", "language")
"""Fields that are kept as metadata if they are strings."""


def read_jsonl(path: str, size: int, name: str, key: str, limit: int) -> Iterator[Page | Broken]:
    """The page, or Broken, of every line of a file (.gz, .zst or uncompressed); a line is an object.

    size: size of the file in bytes
    name: name of the file in reports
    key: the field of the text
    limit: largest size of a line in bytes
    """
    number = 0
    for chunk in chunks([Source(path, size, "jsonl")], key, limit, Position()):
        for item in chunk.items:
            # A Rejection stands in place of a block of lines that could not be read.
            records = [b""] if isinstance(item, Rejection) else raw_records(item)
            for record, text in zip(records, documents(item, key, limit), strict=True):
                number += 1
                if isinstance(text, Rejection):
                    yield _broken(f"{name}#{text.line}", len(record), text)
                else:
                    values = json.loads(record.decode("utf-8-sig"))
                    page = _page(text, values, f"{name}#{number}", len(record))
                    yield replace(page, unread=tuple(_unread(values, key)))


def read_parquet(path: str, name: str, key: str, limit: int) -> Iterator[Page | Broken]:
    """The page, or Broken, of every row of a file.

    name: name of the file in reports
    key: the column of the text, which holds strings
    limit: largest size of a text in bytes

    Raises DataError when there is no such column, ConfigError without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError('reading parquet files needs pyarrow: pip install "megagpt[corpora]"') from None
    number = 0
    try:
        with pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file:
            schema = file.schema_arrow
            if key not in schema.names:
                raise DataError(f"{path}: there is no column {key!r} (--key) among {', '.join(schema.names)}")
            strings = {column.name for column in schema if _holds_strings(column.type)}
            if key not in strings:
                raise DataError(f"{path}: column {key!r} holds {schema.field(key).type}, not strings")
            columns = [key, *(column for column in (URL, *METADATA) if column in strings and column != key)]
            others = tuple(name for name in schema.names if name not in columns)
            for batch in file.iter_batches(ROWS, columns=columns):
                # Read as bytes, so that a text that is not UTF-8 breaks only its row and not the batch.
                rows = [batch.column(column).cast(pa.large_binary()).to_pylist() for column in columns]
                for values in zip(*rows, strict=True):
                    number += 1
                    page = _page_of_row(dict(zip(columns, values, strict=True)), key, f"{name}#{number}", limit)
                    yield replace(page, unread=others) if isinstance(page, Page) else page
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        yield Broken(f"{name}#{number + 1}", 0, "damaged file", f"{error}; what follows in it is lost")


def _holds_strings(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _page_of_row(row: dict[str, bytes | None], key: str, source: str, limit: int) -> Page | Broken:
    value = row[key]
    size = len(value or b"")
    if value is None:
        return Broken(source, size, "wrong type", "null, not a string")
    if size > limit:
        return Broken(source, size, "too long", f"more than {limit} bytes")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        return Broken(source, size, "invalid UTF-8", f"at byte {error.start}")
    others = {name: value.decode(errors="replace") for name, value in row.items() if name != key and value}
    return _page(text, others, source, size)


def _page(text: str, record: dict[str, Any], source: str, size: int) -> Page:
    url = record.get(URL)
    known = {name: record[name] for name in METADATA if isinstance(record.get(name), str) and record[name]}
    return Page(text, source, size, url if isinstance(url, str) and url else None, known)


def _unread(record: dict[str, Any], key: str) -> Iterator[str]:
    """Names of the fields that the page does not keep. Known fields are among them if they are not strings."""
    for name, value in record.items():
        kept = name in (URL, *METADATA) and isinstance(value, str | None)
        if name != key and not kept:
            yield name


def _broken(source: str, size: int, rejection: Rejection) -> Broken:
    return Broken(source, size, rejection.kind, rejection.detail or rejection.kind)
