"""Pairs of texts that belong together; the stage embed learns vectors from them."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.config.inputs import how_to_make
from megagpt.data.readers import MAX_RECORD_BYTES, Position, Rejection, chunks, find_sources
from megagpt.data.unread import log_unread
from megagpt.errors import DataError

KEYS = ("query", "positive", "negatives", "document", "split_key", "text_ids")
"""Keys that a record may have."""

SCORED_KEYS = ("sentence1", "sentence2", "score")
"""Keys of a scored pair."""

_NO_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Pair:
    """A query and a document that answers it."""

    query: str
    positive: str
    """The document."""
    negatives: tuple[str, ...]
    """Documents that do not answer it."""
    document: str | None
    """Common source of both texts, such as a file. A batch holds at most one pair of each document."""
    split_key: str
    """All pairs with this key are in one split: training, validation or test."""
    text_ids: tuple[int, ...]
    """One number each for the query, the positive and the negatives. Equal numbers mean equal or nearly equal texts."""


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences and their similarity according to people."""

    sentence1: str
    sentence2: str
    score: float


def read_pairs(paths: Sequence[str | Path]) -> list[Pair]:
    """The pairs of all files (.jsonl, also .gz and .zst), in order.

    Raises DataError with file and line of a record that is malformed, has an empty text, or has a key not in `KEYS`.
    """
    return [_pair(record, place) for path in paths for record, place in _records(Path(path))]


def read_scored_pairs(path: str | Path) -> list[ScoredPair]:
    """The scored pairs of a file of JSON lines. Logs the names of other fields. Raises DataError as `read_pairs`."""
    found, unread = [], Counter()
    for record, place in _records(Path(path)):
        found.append(_scored_pair(record, place))
        unread.update(name for name in record if name not in SCORED_KEYS)
    log_unread(path, unread)
    return found


def text_key(text: str) -> int:
    """A 63-bit hash. Texts that differ only in case, white space and punctuation have the same hash."""
    content = folded(text) or text.strip()
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest()) >> 1


def folded(text: str) -> str:
    """The text in one case, with each run of characters other than letters and digits replaced by one space."""
    return _NO_LETTERS.sub(" ", text.casefold()).strip()


def _pair(record: dict[str, Any], place: str) -> Pair:
    if unknown := [key for key in record if key not in KEYS]:
        raise DataError(
            f"{place}: {', '.join(unknown)} mean nothing in a pair, which has {', '.join(KEYS)}: `megagpt data pairs"
            " --kind labelled` makes pairs of records in other shapes"
        )
    query, positive = _text(record, "query", place), _text(record, "positive", place)
    negatives = record.get("negatives") or ()
    if not isinstance(negatives, list | tuple):
        raise DataError(f"{place}: negatives must be a list of texts, not {type(negatives).__name__}")
    for number, negative in enumerate(negatives, 1):
        _text({f"negative {number}": negative}, f"negative {number}", place)
    texts, ids = (query, positive, *negatives), record.get("text_ids")
    if ids is None:
        ids = [text_key(text) for text in texts]
    elif not isinstance(ids, list) or len(ids) != len(texts) or not all(map(_is_id, ids)):
        raise DataError(f"{place}: text_ids must be {len(texts)} whole numbers from 0 to 2**63 - 1, one for each text")
    document = record.get("document") or None
    split_key = record.get("split_key", document)
    return Pair(
        query=query,
        positive=positive,
        negatives=tuple(negatives),
        document=None if document is None else str(document),
        split_key=f"query {ids[0]}" if split_key is None else str(split_key),
        text_ids=tuple(ids),
    )


def _scored_pair(record: dict[str, Any], place: str) -> ScoredPair:
    score = record.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise DataError(f"{place}: score must be a number, not {score!r}")
    return ScoredPair(_text(record, "sentence1", place), _text(record, "sentence2", place), float(score))


def _text(record: dict[str, Any], key: str, place: str) -> str:
    text = record.get(key)
    if text is None:
        raise DataError(f"{place}: no {key}; the record has {', '.join(record) or 'no keys'}")
    if not isinstance(text, str):
        raise DataError(f"{place}: {key} must be a text, not {type(text).__name__}")
    if not text.strip():
        raise DataError(f"{place}: {key} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: {key} is not valid Unicode: {error.reason} at character {error.start}") from None
    return text


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(object, "path:line") for every line of a file of JSON lines."""
    if not path.exists() and not path.is_symlink():
        remedy = how_to_make(path) or "`megagpt data pairs` makes one"
        raise DataError(f"cannot read pairs from {path}: there is no such file; {remedy}")
    for line, text in _lines(path):
        place = f"{path}:{line}"
        try:
            record = json.loads(text)
        except ValueError as error:
            raise DataError(f"{place}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{place}: a record is an object, not {type(record).__name__}")
        yield record, place


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1."""
    sources = find_sources([path])
    if sources[0].format != "jsonl":
        raise DataError(f"{path}: pairs are read from JSON lines (.jsonl, also .gz and .zst)")
    for chunk in chunks(sources, "query", MAX_RECORD_BYTES, Position()):
        for item in chunk.items:
            if isinstance(item, Rejection):
                raise DataError(str(item))
            for number, line in enumerate(item.records.split(b"\n"), item.first_line):
                if line.strip():
                    yield number, line
