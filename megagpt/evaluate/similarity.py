"""Semantic textual similarity: do the cosines of pairs of sentences follow people's scores?"""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.pairs import ScoredPair, read_scored_pairs
from megagpt.errors import DataError
from megagpt.evaluate.output_folder import claim, embedding_request, write_result
from megagpt.evaluate.ranking import pearson, spearman
from megagpt.evaluate.settings import SimilarityEvaluation
from megagpt.evaluate.text_embedder import TextEmbedder, embed_saved

COLUMNS = ("sentence1", "sentence2", "score")


def evaluate_similarity(settings: SimilarityEvaluation, embedder: TextEmbedder) -> dict[str, Any]:
    """Embed both sentences of all pairs and correlate; returns what result.json holds.

    Spearman's and Pearson's correlation of the cosine with the score; null where all cosines are equal. Raises
    DataError for a broken file, ConfigError when the output folder holds another evaluation.
    """
    pairs = read_sentence_pairs(settings.data)
    scores = np.array([pair.score for pair in pairs])
    if not np.isfinite(scores).all():
        raise DataError(
            f"{settings.data}: pair {int(np.argmin(np.isfinite(scores))) + 1} has the score NaN or infinity"
        )
    if np.ptp(scores) == 0:
        raise DataError(f"{settings.data}: all {len(pairs)} scores are equal; a correlation needs different ones")
    request = embedding_request(settings, [settings.data], {"pairs": len(pairs)}, side=settings.side)
    claim(settings.output, request)
    first_side, second_side = ("query", "document") if settings.side == "both" else (settings.side, settings.side)
    folder = settings.output / "embeddings"
    first = [pair.sentence1 for pair in pairs]
    second = [pair.sentence2 for pair in pairs]
    a = embed_saved(embedder, first, first_side, settings.dimensions, folder, "first_sentences")
    b = embed_saved(embedder, second, second_side, settings.dimensions, folder, "second_sentences")
    cosines = np.einsum("nh,nh->n", a, b, dtype=np.float64)  # rows have norm 1
    found = {"spearman": spearman(cosines, scores), "pearson": pearson(cosines, scores)}
    metrics = {name: None if np.isnan(value) else value for name, value in found.items()}
    return write_result(settings.output, request, {"metrics": {"model": metrics}})


def read_sentence_pairs(path: Path) -> list[ScoredPair]:
    """The pairs of a .jsonl, .csv or .tsv file, plain or .gz.

    jsonl: {"sentence1", "sentence2", "score"}. csv, tsv: a first line that names these columns, in any order and among
    others, or exactly these three columns without names. Raises DataError naming file and line of what is none.
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
    if not np.isfinite(score):
        raise DataError(f"{place}: score is {row['score']!r}, not a number")
    return ScoredPair(row["sentence1"], row["sentence2"], score)


def _table(path: Path, tabs: bool) -> Iterator[tuple[dict[str, str], str]]:
    """Rows by column name. Tab-separated sets (GLUE's) are published without quoting: a quote is a character there."""
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader, names = csv.reader(file, **style), None
            for row in reader:
                if names is None:
                    names = row if {*COLUMNS} <= {*row} else COLUMNS
                    if names is row:
                        continue
                if row and len(row) != len(names):
                    raise DataError(f"{path}:{reader.line_num}: {len(row)} columns instead of {', '.join(names)}")
                if row:
                    yield dict(zip(names, row, strict=True)), f"{path}:{reader.line_num}"
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read scored pairs from {path}: {error}") from None
