"""Read queries, positives and negatives from labelled sets in their published shapes.

The first record of a file decides its shape. Fields that the shape does not use are logged once.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from megagpt.data.pair_sources import code_search, judged, triples
from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.judged import Judged
from megagpt.data.pair_sources.records import Record, table_kind
from megagpt.data.readers import Rejection
from megagpt.data.unread import log_unread
from megagpt.errors import DataError

log = logging.getLogger(__name__)

Reject = Callable[[Rejection], None]


@dataclass(frozen=True)
class Wanted:
    """Options for labelled sets."""

    scored: bool = False
    """Keep scored pairs with their scores, instead of making pairs to train on."""
    min_score: float | None = None
    """Smallest score of a positive pair."""
    max_negatives: int | None = None
    """Largest number of negatives per pair; None: all."""
    docstring: str = "first"
    """"first" for the first paragraph of a docstring, "whole" for all of it."""


def from_labelled(records: Iterable[Record], wanted: Wanted, reject: Reject, tally: Tally) -> Iterator[FoundPair]:
    """The pairs of labelled records.

    reject: called with each malformed record

    Raises DataError with file and line for an unknown shape.
    """
    for path, group in groupby(records, key=lambda record: record.path):
        rows = _with_names(group, reject) if table_kind(path) else group  # noqa: B031 (one of the two)
        rows = iter(rows)
        if (first := next(rows, None)) is None:
            continue
        name, keys, read = _reader(first, wanted)
        log.info("%s: %s", path, name)
        unused: Counter[str] = Counter()
        yield from read(_same_shape(chain([first], rows), name, keys, unused, reject), reject, tally)
        log_unread(path, unused)


Reader = Callable[[Iterator[Record], Reject, Tally], Iterator[FoundPair]]


def _reader(first: Record, wanted: Wanted) -> tuple[str, "re.Pattern[str]", Reader]:
    """The shape's name, a pattern of the keys that it uses, and the reader of its records."""
    value, place = first.value, first.place
    if scale := judged.names_of(value, wanted.scored or wanted.min_score is not None):
        return _judged_reader(scale, place, wanted)
    if wanted.scored:
        raise DataError(f"{place}: not a scored pair: it needs sentence1, sentence2 and score; {_about(value)}")
    if code_search.fits(value):
        keys = re.compile("|".join(code_search.KEYS))
        return (
            "docstrings and code (CodeSearchNet)",
            keys,
            _one_by_one(lambda record: code_search.pairs(record.value, record.place, wanted.docstring)),
        )
    if shape := triples.shape_of(value):
        return (
            shape.name,
            re.compile(shape.keys),
            _one_by_one(lambda record: triples.pairs(record.value, record.place, shape, wanted.max_negatives)),
        )
    known = "; ".join(shape.name for shape in triples.SHAPES)
    raise DataError(
        f"{place}: not a known shape of labelled pairs: {_about(value)}. Known are: {known}; NLI (premise,"
        " hypothesis, label); scored pairs (sentence1, sentence2, score); BEIR folders"
    )


def _judged_reader(names: Judged, place: str, wanted: Wanted) -> tuple[str, "re.Pattern[str]", Reader]:
    keys = re.compile("|".join(map(re.escape, (names.first, names.second, names.judgement))))
    if not names.numeric:
        return (
            "NLI: premise, hypothesis, label",
            keys,
            lambda records, reject, tally: judged.nli_pairs(records, names, wanted.max_negatives, reject, tally),
        )
    if not wanted.scored and wanted.min_score is None:
        raise DataError(
            f"{place}: scored pairs: give --min-score, the smallest score of a positive pair, or keep the pairs with"
            " their scores by `--kind scored`"
        )
    least = None if wanted.scored else wanted.min_score
    return (
        "scored pairs",
        keys,
        lambda records, reject, tally: judged.scored_pairs(records, names, least, reject, tally),
    )


def _one_by_one(make: Callable[[Record], list[FoundPair]]) -> Reader:
    """A reader of shapes with independent records. `make` raises ValueError for a malformed record."""

    def read(records: Iterator[Record], reject: Reject, tally: Tally) -> Iterator[FoundPair]:
        for record in records:
            try:
                yield from make(record)
            except ValueError as error:
                reject(Rejection(record.path, record.number, str(error)))

    return read


def _same_shape(
    records: Iterable[Record], name: str, keys: "re.Pattern[str]", unused: Counter[str], reject: Reject
) -> Iterator[Record]:
    """The records, after counting their unused fields; a record of another type than the first one is rejected."""
    kind: type | None = None
    for record in records:
        kind = kind or type(record.value)
        if type(record.value) is not kind:
            reject(Rejection(record.path, record.number, f"{type(record.value).__name__}, not {name}"))
            continue
        if isinstance(record.value, dict):
            unused.update(field for field in record.value if not keys.fullmatch(str(field)))
        yield record


def _with_names(rows: Iterable[Record], reject: Reject) -> Iterator[Record]:
    """Rows of a table as dicts by its header. Without a header, two columns are a pair, and a number is a score."""
    names: list[str] | None = None
    for row in rows:
        if names is None:
            names = judged.benchmark_names(row.value) or triples.column_names(row.value)
            if names is None:
                names = [cell.strip() for cell in row.value]
                if len(set(names)) < len(names):
                    raise DataError(f"{row.place}: the header has a column twice: {', '.join(names)}")
                continue
        if names[: len(judged.BENCHMARK)] == list(judged.BENCHMARK):  # some rows name sources, others do not
            fits = len(judged.BENCHMARK) <= len(row.value)
        else:
            fits = len(row.value) == len(names)
        if fits:
            yield Record(row.path, row.number, dict(zip(names, row.value, strict=False)))
        else:
            reject(Rejection(row.path, row.number, f"{len(row.value)} columns, not {len(names)}"))


def _about(value: Any) -> str:
    if isinstance(value, dict):
        return f"the record has {', '.join(map(str, value)) or 'no keys'}"
    if isinstance(value, str):
        return "the file is plain text (tables end in .csv or .tsv)"
    return f"the record is a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list) else "")
