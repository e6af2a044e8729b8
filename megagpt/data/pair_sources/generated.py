"""Make pairs from unlabelled text and source code."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megagpt.data import standard_library
from megagpt.data.corpus.code.languages import language_of
from megagpt.data.pair_sources.code import Functions, code_pairs, source_text
from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.neighbours import Neighbours, neighbour_pairs
from megagpt.data.pair_sources.records import Record, table_kind
from megagpt.data.readers import Rejection
from megagpt.errors import DataError

Records = Iterator[Record | Rejection]


def standard_records() -> Records:
    """The files of Python's standard library, the default input for code."""
    for number, value in enumerate(standard_library.documents(), 1):
        yield Record("standard library", number, value | {"path": f"Lib/{value['path']}"})


class Rejections:
    """Counts malformed records up to a limit."""

    def __init__(self, most: int, tally: Tally) -> None:
        self.most, self.tally, self.count = most, tally, 0

    def __call__(self, rejection: Rejection) -> None:
        """Count a record. Raises DataError when there are more than the limit."""
        self.count += 1
        self.tally.drop(f"record: {rejection.kind}", str(rejection))
        if self.count > self.most:
            raise DataError(f"{self.count} malformed records, and --max-rejected is {self.most}: {rejection}")


def accepted(records: Records, reject: Rejections, tally: Tally, *, sources: bool = False) -> Iterator[Record]:
    """The records that could be read; the others go to `reject`.

    sources: drop files of source code that are empty or not text instead, since any checkout has some
    """
    for record in records:
        if sources and isinstance(record, Rejection) and language_of(record.path, "") is not None:
            tally.drop(f"file: {record.kind}", record.path)
        elif isinstance(record, Rejection):
            reject(record)
        else:
            tally.read["records"] += 1
            yield record


def from_text(
    records: Iterator[Record], key: str, options: Neighbours, seed: int, reject: Rejections, tally: Tally
) -> Iterator[FoundPair]:
    """Neighbouring passages of every document; a record without a text under `key` is rejected."""
    for record in records:
        text = record.value if isinstance(record.value, str) else None
        if isinstance(record.value, dict):
            text = record.value.get(key)
        if not isinstance(text, str):
            hint = "tables are for --kind labelled" if table_kind(record.path) else "--key names the text's key"
            reject(Rejection(record.path, record.number, f"no text under {key!r}", hint))
            continue
        yield from neighbour_pairs(text, record.place, options, seed, tally)


def from_code(
    records: Iterator[Record],
    key: str,
    inputs: Sequence[str | Path],
    options: Functions,
    reject: Rejections,
    tally: Tally,
) -> Iterator[FoundPair]:
    """Docstrings and functions of every file; a record without source code is rejected."""
    for record in records:
        source = source_text(record, key, inputs, options.languages)
        if isinstance(source, str):
            reject(Rejection(record.path, record.number, source, "--key names the key of the text"))
        else:
            yield from code_pairs(source, options, tally)
