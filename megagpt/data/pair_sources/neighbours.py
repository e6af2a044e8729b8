"""Pairs of neighbouring passages of a document (Neelakantan et al., arXiv 2201.10005, section 2).

A document is cut at blank lines; paragraphs that are too long at line ends and sentence ends; sentences that are too
long at white space. Pieces are joined until a passage has a random length between the smallest and the largest.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.errors import ConfigError

_BORDERS = (
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"\n\s*"),
    re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])"),
    re.compile(r"\s+"),
)
"""Places to cut a text, the best first."""


@dataclass(frozen=True)
class Neighbours:
    """Options for passages. Raises ConfigError for invalid values."""

    min_length: int = 200
    max_length: int = 1000
    unit: Literal["characters", "words"] = "characters"
    """Unit of both lengths."""
    distance: int = 0
    """Largest number of passages between the two of a pair."""
    per_document: int = 1
    """Largest number of pairs per document."""

    def __post_init__(self) -> None:
        """Check the values."""
        if not 1 <= self.min_length <= self.max_length:
            raise ConfigError(
                f"--min-length {self.min_length} and --max-length {self.max_length}: they must be at least 1, and the"
                " second not the smaller"
            )
        if self.distance < 0 or self.per_document < 1:
            raise ConfigError("--distance must be at least 0 and --per-document at least 1")

    def length(self, text: str) -> int:
        """The length of a text in `unit`."""
        return len(text) if self.unit == "characters" else len(text.split())


def neighbour_pairs(text: str, document: str, options: Neighbours, seed: int, tally: Tally) -> Iterator[FoundPair]:
    """Up to `per_document` pairs of one document. Each passage is in one pair at most; the seed decides the pairs."""
    rng = random.Random(f"{seed} {document}")
    found = passages(text, options, rng)
    tally.read["passages"] += len(found)
    if len(found) < 2:
        tally.drop("document without two passages of the lengths asked for", document)
        return
    for first, second in _places(len(found), options, rng):
        yield FoundPair(found[first], found[second], document=document, split_key=document)


def _places(count: int, options: Neighbours, rng: random.Random) -> list[tuple[int, int]]:
    """Numbers of the passages of each pair, in the order of the document."""
    free, pairs = set(range(count)), []
    for first in rng.sample(range(count - 1), count - 1):
        if len(pairs) == options.per_document:
            break
        reach = [place for place in range(first + 1, first + 2 + options.distance) if place in free]
        if first in free and reach:
            second = rng.choice(reach)
            free -= {first, second}
            pairs.append((first, second))
    return sorted(pairs)


def passages(text: str, options: Neighbours, rng: random.Random) -> list[str]:
    """The passages of a text, unchanged and in order. Text between two passages is too short for one."""
    found: list[str] = []
    start = end = 0
    longest = min(options.max_length, max(options.min_length, options.length(text) // 2))  # two should fit
    target = rng.randint(options.min_length, longest)
    for _, stop in _pieces(text, 0, len(text), options, 0):
        if options.length(text[start:stop].strip()) > options.max_length:
            found.append(text[start:end].strip())
            start, target = end, rng.randint(options.min_length, longest)
        end = stop
        if options.length(text[start:end].strip()) >= target:
            found.append(text[start:end].strip())
            start, target = end, rng.randint(options.min_length, longest)
    found.append(text[start:end].strip())
    return [passage for passage in found if options.min_length <= options.length(passage) <= options.max_length]


def _pieces(text: str, start: int, stop: int, options: Neighbours, level: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive parts of text[start:stop] of at most the largest length, cut at the best borders."""
    if options.length(text[start:stop].strip()) <= options.max_length:
        yield start, stop
        return
    if level == len(_BORDERS):  # one long word
        yield from ((at, min(at + options.max_length, stop)) for at in range(start, stop, options.max_length))
        return
    at = start
    for border in _BORDERS[level].finditer(text, start, stop):
        if border.end() > at:
            yield from _pieces(text, at, border.end(), options, level + 1)
            at = border.end()
    if at < stop:
        yield from _pieces(text, at, stop, options, level + 1)
