"""The second pass: cut text that documents share with evaluations out of the documents."""

from typing import NamedTuple

import numpy as np

from megagpt.data.corpus.text.decontamination.index import Index
from megagpt.data.corpus.text.decontamination.words import word_hashes, word_spans
from megagpt.data.corpus.text.limits import Decontamination


class Overlap(NamedTuple):
    """A run of words that a document shares with an evaluation."""

    start: int
    """Its first character in the text."""
    end: int
    """The position after its last character."""
    name: str
    """File name of the evaluation."""


def overlaps(text: str, index: Index, counts: np.ndarray, max_documents: int = 10) -> list[Overlap]:
    """The runs of words that `text` shares with evaluations, in order; runs in many documents are ignored.

    counts: uint32 [runs], number of documents of the corpus that have each run of the index
    max_documents: runs in more documents than this are ignored

    Raises ValueError when `counts` and `index` do not fit together.
    """
    if len(counts) != len(index.hashes):
        raise ValueError(f"{len(counts)} counts of an index of {len(index.hashes)} runs")
    words, places = index.find(word_hashes(text))
    rare = counts[places] <= max_documents
    words, places = words[rare], places[rare]
    if not len(words):
        return []
    spans = word_spans(text)
    starts, ends = spans.starts[words], spans.ends[words + index.length - 1]
    names = (index.names[owner] for owner in index.owners[places])
    return [Overlap(int(start), int(end), name) for start, end, name in zip(starts, ends, names, strict=True)]


def cut(text: str, index: Index, counts: np.ndarray, limits: Decontamination) -> list[str] | None:
    """The pieces that remain of a document; [text] if it shares nothing with the evaluations, whatever its length.

    [] if every piece is too short, None if there are more than limits.max_pieces.
    """
    return pieces(text, overlaps(text, index, counts, limits.max_documents), limits)


def pieces(text: str, found: list[Overlap], limits: Decontamination) -> list[str] | None:
    """As `cut`, with the overlaps of `text` given in order."""
    if not found:
        return [text]
    left, end = [], 0
    for overlap in found:
        if overlap.start - limits.window > end:
            left.append(text[end : overlap.start - limits.window])
        end = max(end, overlap.end + limits.window)
    if end < len(text):
        left.append(text[end:])
    if len(left) > limits.max_pieces:
        return None
    return [piece for piece in left if len(piece) >= limits.min_piece]
