"""Read pairs of sentences with scores, in the file formats of published data sets."""

import csv
import io
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from megagpt.data.files import read_text
from megagpt.data.pairs import SCORED_KEYS, ScoredPair, read_scored_pairs
from megagpt.errors import DataError

log = logging.getLogger(__name__)

COLUMNS = SCORED_KEYS


def read_sentence_pairs(path: Path) -> list[ScoredPair]:
    """The pairs of a .jsonl, .csv or .tsv file, plain or .gz.

    jsonl: {"sentence1", "sentence2", "score"}. csv, tsv: a first line that names these columns, in any order and among
    others, or exactly these three columns without names. Raises DataError with file and line of a malformed pair, or
    for fewer than two pairs.
    """
    kind = Path(path.stem if path.suffix in (".gz", ".zst") else path.name).suffix
    if kind in (".csv", ".tsv"):
        pairs = [_pair(row, place) for row, place in _table(path, tabs=kind == ".tsv")]
    else:
        pairs = read_scored_pairs(path)
    if len(pairs) < 2:
        raise DataError(f"{path} holds {len(pairs)} scored pairs; a correlation needs at least 2")
    return pairs


def _pair(row: dict[str, str], place: str) -> ScoredPair:
    for name in COLUMNS[:2]:
        if not row[name].strip():
            raise DataError(f"{place}: {name} is empty")
    try:
        score = float(row["score"])
    except ValueError:
        score = float("nan")
    if not math.isfinite(score):
        raise DataError(f"{place}: score is {row['score']!r}, not a number")
    return ScoredPair(row["sentence1"], row["sentence2"], score)


def _table(path: Path, tabs: bool) -> Iterator[tuple[dict[str, str], str]]:
    """(row by column name, "path:line"). Published tab-separated sets (GLUE's) have no quoting: a quote is text."""
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    try:
        reader, names = csv.reader(io.StringIO(read_text(path, "scored pairs", "utf-8-sig"), newline=""), **style), None
        for row in reader:
            if names is None:
                names = row if {*COLUMNS} <= {*row} else COLUMNS
                if names is row:
                    if others := [name for name in names if name not in COLUMNS]:
                        log.warning("%s: columns that are not read: %s", path, ", ".join(others))
                    continue
            if row and len(row) != len(names):
                raise DataError(f"{path}:{reader.line_num}: {len(row)} columns instead of {', '.join(names)}")
            if row:
                yield dict(zip(names, row, strict=True)), f"{path}:{reader.line_num}"
    except csv.Error as error:
        raise DataError(f"cannot read scored pairs from {path}: {error}") from None
