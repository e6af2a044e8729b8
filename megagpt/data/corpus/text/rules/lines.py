"""RefinedWeb's rules about lines (arXiv 2306.01116, appendix G.2; DCLM's refinedweb.yaml has the patterns)."""

import re
import string
from collections import Counter

from megagpt.data.corpus.text.analysis import Analysis, split_words
from megagpt.data.corpus.text.limits import Lines
from megagpt.data.corpus.text.rules.verdict import Drop, Edit, over

_NETWORK = "like|share|comment|retweet|repost|quote|bookmark|upvote|downvote|download|view|follower"
_COUNTER = re.compile(rf"\W*\d[\d.,]*[kmb]?\s+(?:{_NETWORK})s?\W*", re.IGNORECASE)
_CAPITALS = string.ascii_uppercase.encode()
_LONGEST_COUNTER = 100
_HINTS = ("sign-in", "read more...", "items in cart")
_PHRASES = re.compile(r"\Asign-in\s?|\s?read more\.\.\.\Z|\s?items in cart", re.IGNORECASE)


def lines(analysis: Analysis, limits: Lines) -> Edit:
    """Remove headings in capitals, numbers, counters, single words and parts of menus; drop a page with many."""
    text = analysis.text
    if limits.max_newlines is not None:
        text = re.sub(rf"\n{{{limits.max_newlines + 1},}}", "\n" * limits.max_newlines, text)
    lower = text.lower()
    has_phrases = limits.phrases and any(hint in lower for hint in _HINTS)
    kept: list[str] = []
    counts: Counter[str] = Counter()
    removed = 0
    for line in text.split("\n"):
        if not line or line.isspace():
            kept.append(line)
        elif rule := _objection(line, limits):
            counts[rule] += 1
            removed += len(split_words(line))
        elif has_phrases and (left := _without_phrases(line, limits.max_phrase_words)) != line:
            counts["phrase"] += 1
            removed += len(split_words(line)) - len(split_words(left))
            kept += [left] if left.strip() else []
        else:
            kept.append(line)
    text = "\n".join(kept).strip() if counts else text
    if not text.strip():
        return Edit("", counts, Drop("empty", "no line is left"))
    return Edit(text, counts, over("words removed", removed / len(analysis.words), limits.max_removed))


def _objection(line: str, limits: Lines) -> str | None:
    """The rule that removes a line, or None."""
    if limits.max_uppercase is not None and _is_over(line, limits.max_uppercase * len(line)):
        return "uppercase"
    if limits.numbers and line.strip().isdigit():
        return "number"
    if limits.counters and len(line) <= _LONGEST_COUNTER and _COUNTER.fullmatch(line):
        return "counter"
    least = limits.min_words
    if least and len(line.split(None, least - 1)) < least and len(split_words(line)) < least:
        return "few words"
    return None


def _is_over(line: str, most: float) -> bool:
    """Whether more than `most` characters of a line are capitals."""
    simple = line.encode("ascii", "ignore")
    others = len(line) - len(simple)
    capitals = len(simple) - len(simple.translate(None, _CAPITALS))
    if capitals + others <= most:
        return False
    return sum(map(str.isupper, line)) > most


def _without_phrases(line: str, most: int) -> str:
    """A line without phrases of menus, if it has at most `most` words; else the line."""
    if not _PHRASES.search(line) or len(split_words(line)) > most:
        return line
    return _PHRASES.sub("", line)
