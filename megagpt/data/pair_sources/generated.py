"""Pairs out of text and source code that nobody labelled."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megagpt.data import standard_library
from megagpt.data.pair_sources.code import Functions, code_pairs, source_text
from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.neighbours import Neighbours, neighbour_pairs
from megagpt.data.pair_sources.records import Record, table_kind
from megagpt.data.readers import Rejection
from megagpt.errors import DataError

Records = Iterator[Record | Rejection]


def standard_records() -> Records:
    """The files of Python's standard library, where no input is given."""
    for number, value in enumerate(standard_library.documents(), 1):
        yield Record("standard library", number, value)


def accepted(records: Records, max_rejected: int, tally: Tally) -> Iterator[Record]:
    """The records that could be read. Raises DataError for the first rejection beyond `max_rejected`."""
    rejected = 0
    for record in records:
        if isinstance(record, Rejection):
            rejected += 1
            tally.drop(f"record: {record.kind}", str(record))
            if rejected > max_rejected:
                raise DataError(f"{rejected} malformed records, and --max-rejected is {max_rejected}: {record}")
        else:
            tally.read["records"] += 1
            yield record


def from_text(records: Iterator[Record], key: str, options: Neighbours, seed: int, tally: Tally) -> Iterator[FoundPair]:
    """Neighbouring passages of every document. Raises DataError for a record without a text under `key`."""
    for record in records:
        text = record.value if isinstance(record.value, str) else None
        if isinstance(record.value, dict):
            text = record.value.get(key)
        if not isinstance(text, str):
            hint = "tables are for --kind labelled" if table_kind(record.path) else "--key names the text's key"
            raise DataError(f"{record.place}: no text under {key!r}: {hint}")
        yield from neighbour_pairs(text, record.place, options, seed, tally)


def from_code(
    records: Iterator[Record], key: str, inputs: Sequence[str | Path], options: Functions, tally: Tally
) -> Iterator[FoundPair]:
    """Docstrings and functions of every file. Raises DataError for a record that holds no source code."""
    for record in records:
        source = source_text(record, key, inputs)
        if isinstance(source, str):
            raise DataError(f"{record.place}: {source}: --key names the key of the text")
        yield from code_pairs(source, options, tally)
