"""Texts to embed, one per record: a line of text, a field of a JSON object, or a row of a parquet column.

A corpus may leave out malformed records. Here every record must hold a text, because the number of a record is also the
number of its vector.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megagpt.data.readers import (
    MAX_RECORD_BYTES,
    Block,
    Position,
    Rejection,
    Source,
    chunks,
    documents,
    find_sources,
    raw_records,
)
from megagpt.errors import DataError


class Text(NamedTuple):
    """One record."""

    text: str
    record: dict[str, Any]
    """The other fields of a JSON object; empty for lines of text and parquet rows."""


def text_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """The files of `inputs` as `find_sources` finds them, but every line of a text file is one text.

    Raises DataError when an input gives no file.
    """
    found = find_sources(inputs)
    return [source._replace(format="lines") if source.format == "text" else source for source in found]


def read_texts(sources: Sequence[Source], key: str = "text") -> Iterator[Text]:
    """The texts of `sources`, in order. `key`: the text's key in JSON objects, or its column in parquet files.

    Raises DataError with file and line of the first record that is empty or malformed.
    """
    for chunk in chunks(sources, key, MAX_RECORD_BYTES, Position()):
        for item in chunk.items:
            raw = raw_records(item) if isinstance(item, Block) else [b""]
            for stored, text in zip(raw, documents(item, key, MAX_RECORD_BYTES), strict=True):
                if isinstance(text, Rejection):
                    raise DataError(f"{text}: every line or record must hold a text, since its number finds its vector")
                if item.format == "jsonl":
                    record = json.loads(stored.decode("utf-8-sig"))
                    yield Text(text, {name: value for name, value in record.items() if name != key})
                else:
                    yield Text(text.rstrip("\r") if item.format == "lines" else text, {})


def count_texts(sources: Sequence[Source], key: str = "text") -> int:
    """The number of texts; reads all of them, so that a bad record is found before hours of work. Raises DataError."""
    count = sum(1 for _ in read_texts(sources, key))
    if not count:
        raise DataError(f"there is no text in {', '.join(source.path for source in sources)}")
    return count


def shortened(text: str, width: int = 150) -> str:
    """The beginning of a text, on one line, at most `width` characters."""
    words = " ".join(text[: 4 * width].split())
    return words if len(words) <= width else f"{words[: width - 3].rstrip()}..."
