"""Two sentences with a judgement: NLI (entailment, neutral, contradiction) and scores of similarity."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.records import Record
from megagpt.data.pair_sources.triples import is_number
from megagpt.data.readers import Rejection
from megagpt.errors import DataError

_SIDES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("sentence_A", "sentence_B"),
    ("text1", "text2"),
    ("question1", "question2"),
)
_SCORES = ("score", "similarity_score", "relatedness_score", "similarity", "labels_score")
_LABELS = ("gold_label", "label", "labels", "entailment_label", "entailment_judgment", "is_duplicate")

ENTAILMENT, NEUTRAL, CONTRADICTION = "entailment", "neutral", "contradiction"
INTEGERS = (ENTAILMENT, NEUTRAL, CONTRADICTION)
"""Meanings of 0, 1 and 2 in SNLI, MultiNLI, ANLI and XNLI on the Hugging Face hub; -1 means no majority."""
NO_MAJORITY = ("-", "-1", "")
"""Labels of examples whose annotators had no majority."""

BENCHMARK = ("genre", "filename", "year", "number", "score", "sentence1", "sentence2")
"""Columns of the STS benchmark's files, which have no header. Two columns with sources may follow."""

Reject = Callable[[Rejection], None]


@dataclass(frozen=True)
class Judged:
    """The names of the fields."""

    first: str
    second: str
    judgement: str
    numeric: bool
    """Whether the judgement is a score."""


def names_of(value: Any, scores: bool) -> Judged | None:
    """The fields with two sentences and a judgement in a record; None if it has no such fields.

    scores: whether any number in a label field is a score. Otherwise only a number with a fraction is one.
    """
    if not isinstance(value, dict):
        return None
    for first, second in _SIDES:
        if first not in value or second not in value:
            continue
        score = next((key for key in _SCORES if key in value), None)
        label = next((key for key in _LABELS if key in value), None)
        if score and not (label and not scores):
            return Judged(first, second, score, numeric=True)
        if label:
            fraction = isinstance(value[label], float) or (is_number(value[label]) and "." in str(value[label]))
            return Judged(first, second, label, numeric=fraction or (scores and is_number(value[label])))
    return None


def benchmark_names(cells: Sequence[str]) -> list[str] | None:
    """Names of the columns if the first row `cells` is from the STS benchmark's files; None for another table."""
    extra = len(cells) - len(BENCHMARK)
    if 0 <= extra <= 2 and is_number(cells[4]) and not is_number(cells[5]):
        return [*BENCHMARK, *("source1", "source2")[:extra]]
    return None


def scored_pairs(
    records: Iterator[Record], names: Judged, least: float | None, reject: Reject, tally: Tally
) -> Iterator[FoundPair]:
    """Pairs with a score of at least `least`; if that is None, all pairs, with their scores."""
    for record in records:
        texts, score = _sentences(record, names, reject), record.value.get(names.judgement)
        if texts is None:
            continue
        if not is_number(score):
            reject(Rejection(record.path, record.number, f"{names.judgement} is {score!r}, not a number"))
        elif least is None:
            yield FoundPair(texts[0], texts[1], document=record.place, score=float(score))
        elif float(score) >= least:
            yield FoundPair(texts[0], texts[1], document=record.place)
        else:
            tally.drop("record: score below --min-score", record.place)


def nli_pairs(
    records: Iterator[Record], names: Judged, max_negatives: int | None, reject: Reject, tally: Tally
) -> Iterator[FoundPair]:
    """Pairs of each premise with its entailed sentences; contradictions are negatives (SimCSE, arXiv 2104.08821).

    Raises DataError if the labels are only 0 and 1, which is ambiguous.
    """
    premises: dict[str, dict[str, list[str]]] = {}
    places: dict[str, str] = {}
    labels: set[str] = set()
    for record in records:
        texts = _sentences(record, names, reject)
        if texts is None:
            continue
        label = str(record.value.get(names.judgement)).strip().lower()
        labels.add(label)
        if label in NO_MAJORITY:
            tally.drop("record: no majority of annotators", record.place)
            continue
        meaning = INTEGERS[int(label)] if label in ("0", "1", "2") else label
        if meaning not in INTEGERS:
            reject(Rejection(record.path, record.number, f"{names.judgement} is {label!r}, not {', '.join(INTEGERS)}"))
            continue
        places.setdefault(texts[0], record.place)
        premises.setdefault(texts[0], {kind: [] for kind in INTEGERS})[meaning].append(texts[1])
    if labels and labels <= {"0", "1"}:
        raise DataError(
            f"{next(iter(places.values()))}: the only values of {names.judgement} are {' and '.join(sorted(labels))}:"
            " 1 may mean duplicate, or neutral. If 1 marks pairs that belong together, give --min-score 1"
        )
    for premise, found in premises.items():
        place, contradictions = places[premise], tuple(dict.fromkeys(found[CONTRADICTION]))[:max_negatives]
        tally.drop("record: neutral", place, len(found[NEUTRAL])) if found[NEUTRAL] else None
        if not found[ENTAILMENT]:
            tally.drop("premise without entailment", place)
        for text in found[ENTAILMENT]:
            yield FoundPair(premise, text, contradictions, document=place)


def _sentences(record: Record, names: Judged, reject: Reject) -> tuple[str, str] | None:
    """Both texts; None after a rejection."""
    found = []
    for name in (names.first, names.second):
        text = record.value.get(name)
        if not isinstance(text, str) or not text.strip():
            problem = "is empty" if isinstance(text, str) else f"is {type(text).__name__}, not a text"
            reject(Rejection(record.path, record.number, f"{name} {problem}"))
            return None
        found.append(text.strip())
    return found[0], found[1]
