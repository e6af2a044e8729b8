"""C4's rules (arXiv 1910.10683, section 2.2), with the same decisions as datatrove's blocks."""

import heapq
import re
from collections import Counter
from functools import lru_cache

from megagpt.data.corpus.text.analysis import Analysis, count_sentences
from megagpt.data.corpus.text.limits import C4
from megagpt.data.corpus.text.rules.verdict import Drop, Edit
from megagpt.data.files import read_text
from megagpt.errors import ConfigError, DataError

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_NO_SPACES = ("ja", "th", "zh")
"""Languages without spaces: a bad word also counts inside other text."""


def c4(analysis: Analysis, limits: C4) -> Edit:
    """Remove lines that are not sentences or are about cookies and scripts; drop pages with placeholders or code."""
    kept: list[str] = []
    counts: Counter[str] = Counter()
    drop = _edit_lines(analysis, limits, kept, counts)
    text = "\n".join(kept).strip()
    if not drop and limits.min_sentences is not None and not _has_sentences(kept, limits.min_sentences):
        drop = Drop("few sentences", f"fewer than {limits.min_sentences}")
    return Edit(text, counts, drop or _short_paragraphs(text, limits))


def _edit_lines(analysis: Analysis, limits: C4, kept: list[str], counts: Counter[str]) -> Drop | None:
    """Append the remaining lines to `kept` and count the others. Returns a drop of the whole page, if any."""
    lower = analysis.text.lower()
    cite = limits.citations and "[" in lower  # cutting out a citation may create one of the phrases
    lorem = limits.lorem_ipsum and (cite or "lorem ipsum" in lower)
    javascript = limits.javascript and (cite or "javascript" in lower)
    policy = limits.policy and (cite or any(phrase in lower for phrase in _POLICY))
    bracket = limits.curly_bracket and "{" in lower
    marks = None if limits.terminal_marks is None else tuple(limits.terminal_marks)
    longest, least = limits.max_word_length, limits.min_words
    for whole in analysis.lines:
        line = whole = whole.strip()
        if longest is not None and len(line) > longest and max(map(len, line.split())) > longest:
            counts["long word"] += 1
            continue
        if cite and "[" in line:
            line = _CITATION.sub("", line)
        if marks is not None and (not line.endswith(marks) or line.endswith("...")):
            counts["no terminal mark"] += 1
            continue
        if least and len(whole.split(None, least - 1)) < least:
            counts["few words"] += 1
            continue
        if lorem and "lorem ipsum" in line.lower():
            return Drop("lorem ipsum", line[:100])
        if javascript and "javascript" in line.lower():
            counts["javascript"] += 1
            continue
        if bracket and "{" in line:
            return Drop("curly bracket", line[:100])
        if policy and any(phrase in line.lower() for phrase in _POLICY):
            counts["policy"] += 1
            continue
        if len(line) < len(whole):
            counts["citation"] += 1
        kept.append(line)
    return None


def _has_sentences(lines: list[str], least: int) -> bool:
    """Whether the lines have at least `least` sentences; an empty line counts as one."""
    count = 0
    for line in lines:
        if count >= least:
            break
        count += max(1, count_sentences(line, least - count))
    return count >= least


def _short_paragraphs(text: str, limits: C4) -> Drop | None:
    """mC4's rule about long lines."""
    if limits.min_paragraphs is None:
        return None
    longest = heapq.nlargest(limits.min_paragraphs, map(len, text.split("\n")))
    if len(longest) == limits.min_paragraphs and (not longest or longest[-1] >= limits.min_paragraph_length):
        return None
    return Drop("short paragraphs", f"fewer than {limits.min_paragraphs} of {limits.min_paragraph_length} characters")


class BadWords:
    """Finds words of a list; in languages with spaces, only whole words."""

    def __init__(self, words: set[str]) -> None:
        self._words = {word for word in words if re.fullmatch(r"\w+", word)}
        self._phrases = words - self._words
        self._all = words

    def __call__(self, text: str, language: str) -> Drop | None:
        """A drop if `text` has a bad word. language: ISO 639-1 code"""
        lower = text.lower()
        if language in _NO_SPACES:
            found = next((word for word in sorted(self._all) if word in lower), None)
        else:
            found = min(self._words.intersection(re.findall(r"\w+", lower)), default=None)
            found = found or next((phrase for phrase in sorted(self._phrases) if _stands_alone(phrase, lower)), None)
        return Drop("bad words", repr(found)) if found else None


def _stands_alone(phrase: str, text: str) -> bool:
    return phrase in text and re.search(rf"(?:\W|^){re.escape(phrase)}(?:\W|$)", text) is not None


@lru_cache(maxsize=4)
def load_bad_words(path: str) -> BadWords:
    """The list in a file, one word or phrase per line. Raises ConfigError when the file cannot be read."""
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        raise ConfigError(f"c4.bad_words: {path} cannot be read: {error}") from error
    return BadWords({line.strip().lower() for line in lines if line.strip()})
