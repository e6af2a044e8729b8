"""Shapes of records with a query, positive documents and perhaps negatives."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from megagpt.data.pair_sources.found import FoundPair


@dataclass(frozen=True)
class Shape:
    """The keys of a record."""

    name: str
    """Name in messages."""
    query: str
    """Required key of the query."""
    positive: str
    """Required key of the positives."""
    negatives: tuple[str, ...] = ()
    """Optional keys of negatives."""

    @property
    def keys(self) -> str:
        """A pattern of all keys that are used."""
        numbered = ["negative_?[0-9]+"] if "negative" in self.negatives else []
        return "|".join(["document", "split_key", "text_ids", self.query, self.positive, *self.negatives, *numbered])


_TWO_COLUMNS = (
    "query passage, query document, query answer, question answer, question context, title body, title abstract,"
    " title text, title selftext, title answer, nl code, description code, text code, sentence1 sentence2, text1 text2,"
    " sentence paraphrase, text summary, document summary, article highlights, instruction output, prompt completion,"
    " source target, anchor text"
)
_LIST = Shape("a list of two texts, or of an anchor, a positive and negatives", "0", "1", ("2",))
_SET = Shape('{"set": texts that mean the same}', "set", "set")

SHAPES = (
    Shape("query, pos, neg (BGE)", "query", "pos", ("neg",)),
    Shape("query, positive, negatives", "query", "positive", ("negatives", "negative", "hard_negatives")),
    Shape("anchor, positive, negative (sentence-transformers)", "anchor", "positive", ("negative", "negatives")),
    Shape("question, positive_ctxs (DPR)", "question", "positive_ctxs", ("hard_negative_ctxs", "negative_ctxs")),
    Shape("query, positive_passages (Tevatron)", "query", "positive_passages", ("negative_passages",)),
    _SET,
    _LIST,
    *(Shape(f"{first}, {second}", first, second) for first, second in map(str.split, _TWO_COLUMNS.split(","))),
)
"""A record has the first shape that fits."""

_CHANGES_MEANING = ("label", "labels", "gold_label", "score", "similarity", "is_duplicate")
"""With one of these fields, two columns may not belong together."""


def shape_of(value: Any) -> Shape | None:
    """The shape of a record, or None."""
    if isinstance(value, list):
        return _LIST if len(value) >= 2 else None
    if not isinstance(value, dict):
        return None
    if "set" in value:
        return _SET
    judged = any(key in value for key in _CHANGES_MEANING)
    fitting = [shape for shape in SHAPES if shape.query in value and shape.positive in value]
    return next((shape for shape in fitting if shape.negatives or not judged), None)


def column_names(cells: Sequence[str]) -> list[str] | None:
    """Names of the columns if the first row `cells` is not a header; None if it is one."""
    known = {name for shape in SHAPES for name in (shape.query, shape.positive, *shape.negatives)} - {"0", "1", "2"}
    known |= {"premise", "hypothesis", "sentence_A", "sentence_B", "original_string", "func_code_string", "docstring"}
    if known & {cell.strip() for cell in cells}:
        return None
    if len(cells) == 3 and is_number(cells[2]):
        return ["sentence1", "sentence2", "score"]
    return {2: ["anchor", "positive"], 3: ["anchor", "positive", "negative"]}.get(len(cells))


def is_number(cell: Any) -> bool:
    """Whether a cell or value is a finite number."""
    if isinstance(cell, bool):
        return False
    return isinstance(cell, int | float) or (
        isinstance(cell, str) and re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", cell) is not None
    )


def pairs(value: Any, place: str, shape: Shape, max_negatives: int | None) -> list[FoundPair]:
    """The pairs of a record: one for each positive. Raises ValueError for a malformed record."""
    document, split_key = place, ""
    if shape is _SET:
        texts = _texts(value, "set")
        return [FoundPair(first, second, (), place) for first, second in pairwise(texts)]
    if shape is _LIST:
        first, second, *others = (_text(item, f"item {number}") for number, item in enumerate(value, 1))
        queries, positives, negatives = [first], [second], others
    else:
        if missing := [key for key in (shape.query, shape.positive) if value.get(key) is None]:
            raise ValueError(f"no {' and no '.join(missing)}")
        queries, positives = _texts(value, shape.query), _texts(value, shape.positive)
        numbered = [
            key for key in value if re.fullmatch(r"negative_?[0-9]+", str(key)) and "negative" in shape.negatives
        ]
        negatives = [text for key in (*shape.negatives, *numbered) if value.get(key) for text in _texts(value, key)]
        if shape.query == "instruction" and value.get("input"):
            queries = [f"{queries[0]}\n{_text(value['input'], 'input')}"]
        document, split_key = str(value.get("document") or place), str(value.get("split_key") or "")
    if len(queries) != 1:
        raise ValueError(f"{shape.query} holds {len(queries)} texts, not one")
    if not positives:
        raise ValueError(f"{shape.positive} is empty")
    kept = tuple(negatives[:max_negatives])
    return [FoundPair(queries[0], positive, kept, document, split_key) for positive in positives]


def _texts(value: dict[str, Any], key: str) -> list[str]:
    """The texts of a field: one, or a list. Each may be an object with title and text."""
    found = value[key]
    if isinstance(found, list):
        return [_text(item, f"{key}, item {number},") for number, item in enumerate(found, 1)]
    return [_text(found, key)]


def _text(value: Any, name: str) -> str:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = " ".join(part for part in (value.get("title"), value["text"]) if isinstance(part, str))
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not a text")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    return value.strip()
