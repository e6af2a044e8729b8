"""Select pairs from the sources: drop duplicates, choose a split, and sample."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from megagpt.data.packed import SPLITS, Split, split_of
from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.near import LIKENESS, NearDuplicates
from megagpt.data.pairs import text_key
from megagpt.errors import ConfigError
from megagpt.log import progress

SHARES = (0.9, 0.05, 0.05)
"""Shares of train, validation and test."""


@dataclass(frozen=True)
class Selection:
    """Criteria for keeping pairs. Raises ConfigError for invalid values."""

    split: Split | None = None
    """Keep only this split; None keeps all pairs, and a run divides them by their split_key."""
    shares: tuple[float, ...] = SHARES
    """Shares of train, validation and test."""
    max_pairs: int | None = None
    """Size of a uniform sample; None keeps all."""
    near_duplicates: float = LIKENESS
    """See near.LIKENESS; 0 does not search for near-duplicates."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if len(self.shares) != len(SPLITS) or min(self.shares) < 0 or sum(self.shares) <= 0:
            given = ",".join(f"{share:g}" for share in self.shares)
            raise ConfigError(
                f"--split-shares {given}: give three numbers, for {', '.join(SPLITS)}, such as 0.9,0.05,0.05"
            )
        if self.split and not self.shares[SPLITS.index(self.split)]:
            raise ConfigError(f"--split {self.split}: its share in --split-shares is 0")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ConfigError(f"--max-pairs is {self.max_pairs}; it must be at least 1")
        if not 0 <= self.near_duplicates <= 1:
            raise ConfigError(f"--near-duplicates is {self.near_duplicates}; it must be from 0 to 1")


def distinct(found: Iterable[FoundPair], tally: Tally) -> Iterator[FoundPair]:
    """The pairs without exact duplicates of earlier pairs (ignoring case, space and punctuation), and without pairs of
    two equal texts."""
    seen: dict[tuple[int, int], FoundPair] = {}
    for pair in found:
        tally.read["pairs"] += 1
        key = text_key(pair.query), text_key(pair.positive)
        if key[0] == key[1] and pair.score is None:
            tally.drop("pair: both texts are the same", pair.document)
        elif (first := seen.setdefault(key, pair)) is not pair:
            again = pair.score == first.score
            tally.drop(f"pair: exact duplicate{'' if again else ' with another score'}", pair.document)
        else:
            yield pair


def unlike(found: Iterable[FoundPair], likeness: float, both_sides: bool, tally: Tally) -> Iterator[FoundPair]:
    """The pairs whose positive is not a near-duplicate of an earlier positive.

    both_sides: compare queries too, and all texts with each other; also drops a pair of two near-duplicates
    """
    if not likeness:
        yield from found
        return
    near = NearDuplicates(likeness)
    for pair in found:
        texts = (pair.query, pair.positive) if both_sides else (pair.positive,)
        if [near.add(text, 1) for text in texts] == [None] * len(texts):
            yield pair
        else:
            tally.drop("pair: near-duplicate", pair.document)


class Numbers:
    """Numbers of texts, equal for near-duplicates: the number is `text_key` of the first of them."""

    def __init__(self, likeness: float) -> None:
        self._near = NearDuplicates(likeness) if likeness else None
        self._known: dict[int, int] = {}

    def of(self, text: str) -> int:
        """The number of a text. The text is stored for later comparisons."""
        key = text_key(text)
        if key not in self._known:
            found = self._near.add(text, key) if self._near else None
            self._known[key] = key if found is None else found
        return self._known[key]

    def numbered(self, pair: FoundPair, tally: Tally) -> FoundPair:
        """The pair, with text_ids if they differ from the numbers that `read_pairs` computes.

        A negative that equals the query, the positive or another negative is left out. A negative that is only a
        near-duplicate of the query or positive keeps its own number, because an annotator marked it as a negative.
        """
        own = self.of(pair.query), self.of(pair.positive)
        ids = {text_key(pair.query): own[0], text_key(pair.positive): own[1]}
        negatives = []
        for text in pair.negatives:
            if (key := text_key(text)) in ids:
                tally.drop("negative: the same as another text of its pair", pair.document)
                continue
            ids[key] = key if self.of(text) in own else self.of(text)
            negatives.append(text)
        pair = replace(pair, negatives=tuple(negatives))
        differ = any(key != number for key, number in ids.items())
        return replace(pair, text_ids=tuple(ids[text_key(text)] for text in pair.texts)) if differ else pair


def together(pairs: Sequence[FoundPair], numbers: Numbers) -> list[FoundPair]:
    """The pairs, with one split_key for all that share a query, a positive or a split_key, transitively."""
    parents: dict[int | str, int | str] = {}

    def root(name: int | str) -> int | str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = parents[parent]
            name = parent
        return name

    with progress(len(pairs), "pairs", "comparing") as bar:
        for pair in pairs:
            query = numbers.of(pair.query)
            for name in (numbers.of(pair.positive), pair.split_key or query):
                parents[root(name)] = root(query)
            bar.update(1)
    names: dict[int | str, str] = {}
    return [
        replace(pair, split_key=names.setdefault(root(numbers.of(pair.query)), pair.split_key or pair.document))
        for pair in pairs
    ]


def in_split(found: Iterable[FoundPair], selection: Selection, tally: Tally) -> Iterator[FoundPair]:
    """The pairs of `selection.split`, by their split_key."""
    for pair in found:
        split = split_of(pair.split_key, selection.shares)
        tally.read[f"pairs of {split}"] += 1
        if selection.split in (None, split):
            yield pair


def sample(found: Iterable[FoundPair], selection: Selection) -> list[FoundPair]:
    """A uniform sample of at most `max_pairs` of the pairs, in their order (Vitter's algorithm R)."""
    if selection.max_pairs is None:
        return list(found)
    rng, kept = random.Random(selection.seed), []
    for number, pair in enumerate(found):
        if number < selection.max_pairs:
            kept.append((number, pair))
        elif (place := rng.randrange(number + 1)) < selection.max_pairs:
            kept[place] = (number, pair)
    return [pair for _, pair in sorted(kept, key=lambda item: item[0])]
