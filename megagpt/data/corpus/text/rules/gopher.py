"""Gopher's rules about quality and repetition (arXiv 2112.11446, appendix A1), as datatrove's blocks decide."""

from functools import cache

import numpy as np

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.limits import GopherQuality, GopherRepetition
from megagpt.data.corpus.text.rules.repetition import Runs, duplicates
from megagpt.data.corpus.text.rules.verdict import Drop, over, under

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_FIRST = 500
"""Number of first words to search first: they nearly always have the stop words."""
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")
_LETTER, _NO_PUNCTUATION = 1, 2


def quality(analysis: Analysis, limits: GopherQuality) -> Drop | None:
    """Drop texts that are too short or long, or have words of unusual length, many symbols, list items or ellipses, few
    letters, or no common English words."""
    if not analysis.words:
        return Drop("few words", "no word")
    classes = np.bitwise_or.reduceat(_classes()[analysis.characters], analysis.starts)
    return (
        _word_lengths(analysis.lengths[classes >= _NO_PUNCTUATION], limits)
        or _symbols(analysis, limits)
        or under("few words with letters", (classes & _LETTER).sum() / len(classes), limits.min_alphabetic_words)
        or _stop_words(analysis.words, limits.min_stop_words)
    )


def _word_lengths(lengths: np.ndarray, limits: GopherQuality) -> Drop | None:
    """Rules about the words that are not only punctuation."""
    if limits.min_words is not None and len(lengths) < limits.min_words:
        return Drop("few words", f"{len(lengths)} words")
    if limits.max_words is not None and len(lengths) > limits.max_words:
        return Drop("many words", f"{len(lengths):,} words")
    mean = lengths.sum() / len(lengths) if len(lengths) else np.nan
    return under("short words", mean, limits.min_mean_word_length) or over(
        "long words", mean, limits.max_mean_word_length
    )


def _symbols(analysis: Analysis, limits: GopherQuality) -> Drop | None:
    text, words, lines = analysis.text, len(analysis.words), analysis.lines
    ellipses = sum(map(text.count, _ELLIPSES))
    bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines) if any(map(text.count, _BULLETS)) else 0
    cut = sum(line.rstrip().endswith(_ELLIPSES) for line in lines) if ellipses else 0
    return (
        over("hashes", text.count("#") / words, limits.max_hashes)
        or over("ellipses", ellipses / words, limits.max_ellipses)
        or over("bullet lines", bullets / len(lines), limits.max_bullet_lines)
        or over("lines that end with an ellipsis", cut / len(lines), limits.max_ellipsis_lines)
    )


def _stop_words(words: list[str], least: int | None) -> Drop | None:
    if least is None or len(_STOP_WORDS.intersection(words[:_FIRST])) >= least:
        return None
    found = len(_STOP_WORDS.intersection(words))
    return Drop("few stop words", f"{found} different ones") if found < least else None


@cache
def _classes() -> np.ndarray:
    """uint8 [0x110000]: for each code point, bits _LETTER and _NO_PUNCTUATION."""
    from datatrove.utils.text import PUNCTUATION_SET

    everything = list(map(chr, range(0x110000)))
    letters = np.fromiter(map(str.isalpha, everything), np.uint8, len(everything))
    classes = letters * np.uint8(_LETTER) + np.uint8(_NO_PUNCTUATION)
    classes[list(map(ord, PUNCTUATION_SET))] -= np.uint8(_NO_PUNCTUATION)
    return classes


def repetition(analysis: Analysis, limits: GopherRepetition) -> Drop | None:
    """Drop texts with repeated paragraphs, lines or runs of words. Shares of characters refer to the whole text."""
    characters = len(analysis.text)
    if not characters:
        return Drop("empty", "no character")
    units = (
        ("paragraphs", analysis.paragraphs, limits.duplicate_paragraphs, limits.duplicate_paragraph_characters),
        ("lines", _lines(analysis.text), limits.duplicate_lines, limits.duplicate_line_characters),
    )
    for name, items, most, most_characters in units:
        count, length = duplicates(items)
        if drop := over(f"duplicate {name}", count / len(items), most):
            return drop
        if drop := over(f"characters in duplicate {name}", length / characters, most_characters):
            return drop
    return _runs(Runs(analysis), characters, limits)


def _lines(text: str) -> list[str]:
    r"""The parts between runs of line breaks, equal to `re.split(r"\n+", text)`."""
    inner = [line for line in text.split("\n") if line]
    return [*[""] * text.startswith("\n"), *inner, *[""] * text.endswith("\n")]


def _runs(runs: Runs, characters: int, limits: GopherRepetition) -> Drop | None:
    tops = ((2, limits.top_2grams), (3, limits.top_3grams), (4, limits.top_4grams))
    asked = [(length, most) for length, most in tops if most is not None]
    if not runs.rare([(length, most * characters) for length, most in asked]):
        for length, most in asked:
            if drop := over(f"top {length}-gram", runs.top(length, most * characters) / characters, most):
                return drop
    for length in range(5, 11):
        most = getattr(limits, f"duplicate_{length}grams")
        share = 0.0 if most is None else runs.repeated(length) / characters
        if drop := over(f"duplicate {length}-grams", share, most):
            return drop
    return None
