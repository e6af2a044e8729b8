"""Cut out repeated passages: lines, or runs of sentences (C4, arXiv 1910.10683), that an earlier document has."""

from itertools import accumulate

import numpy as np

from megagpt.data.corpus.duplicates.exact import hash_texts
from megagpt.data.corpus.text.analysis import split_sentences
from megagpt.data.corpus.text.limits import Duplicates
from megagpt.data.corpus.text.recipe import Recipe

Span = tuple[int, int]
"""Characters [start, end) of a text."""


def passages(text: str, duplicates: Duplicates) -> tuple[list[Span], np.ndarray]:
    """The lines of `text` if `duplicates.lines`, and its runs of `duplicates.spans` sentences if that is set.

    Returns their spans and their hashes, uint64 [passages, 2], which ignore case and white space at the ends.
    """
    spans: list[Span] = []
    if duplicates.lines:
        spans += [span for span in _spans(text.splitlines(keepends=True), 1) if text[slice(*span)].strip()]
    lines = len(spans)
    if duplicates.spans:
        spans += _spans(split_sentences(text), duplicates.spans)
    kinds = ["line"] * lines + ["span"] * (len(spans) - lines)
    keys = [f"{kind}\n{text[start:end].strip().lower()}" for kind, (start, end) in zip(kinds, spans, strict=True)]
    return spans, hash_texts(keys)


def _spans(parts: list[str], length: int) -> list[Span]:
    """The span of each run of `length` parts; joined, the parts are the text."""
    ends = list(accumulate(map(len, parts), initial=0))
    return [(ends[first], ends[first + length]) for first in range(len(parts) - length + 1)]


def edited(text: str, cut: list[Span], recipe: Recipe) -> tuple[str, str]:
    """(`text` without the passages `cut`, reason to drop the rest or "").

    The rest is dropped if it has fewer sentences than C4's rule requires, as in C4's own code.
    """
    if not cut:
        return text, ""
    kept, end = [], 0
    for start, stop in sorted(cut):
        kept.append(text[end : max(end, start)])
        end = max(end, stop)
    left = "".join([*kept, text[end:]]).strip()
    least = (recipe.c4 and recipe.c4.min_sentences) or 1
    sentences = len(split_sentences(left))
    return left, f"{sentences} sentences are left of it" if sentences < least else ""
