"""Hard negatives: texts that share words with the query (BM25 ranks them high) but are not marked as relevant."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from megagpt.data.bm25 import BM25
from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.make import Numbers
from megagpt.errors import ConfigError
from megagpt.log import progress

QUERIES_AT_A_TIME = 128


@dataclass(frozen=True)
class Mining:
    """Number of negatives per pair, and the range of ranks to draw them from."""

    count: int
    first: int
    """First rank, from 1."""
    last: int
    """Last rank, included."""

    @classmethod
    def parse(cls, count: int, ranks: str) -> "Mining":
        """The values of `--bm25-negatives` and `--bm25-ranks`. Raises ConfigError."""
        found = re.fullmatch(r"(\d+)-(\d+)", ranks)
        if count < 0 or not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(
                f"--bm25-negatives {count} --bm25-ranks {ranks}: give a number and two ranks such as 30-100"
            )
        if count > int(found[2]) - int(found[1]) + 1:
            raise ConfigError(f"--bm25-negatives {count}: there are fewer ranks in --bm25-ranks {ranks}")
        return cls(count, int(found[1]), int(found[2]))


def with_hard_negatives(
    pairs: Sequence[FoundPair],
    relevant: dict[int, set[int]],
    texts: Sequence[str],
    mining: Mining,
    numbers: Numbers,
    seed: int,
    tally: Tally,
) -> list[FoundPair]:
    """The pairs with up to `mining.count` more negatives, drawn from the given ranks among `texts`.

    relevant: {number of a query: numbers of its relevant texts}; these are no negatives, nor are texts that share no
        word with the query

    Raises ConfigError if there are fewer texts than the first rank.
    """
    if len(texts) < mining.first:
        raise ConfigError(f"--bm25-ranks begins at {mining.first}, and there are only {len(texts)} texts to rank")
    index, made = BM25(texts), []
    with progress(len(pairs), "pairs", "mining") as bar:
        for start in range(0, len(pairs), QUERIES_AT_A_TIME):
            some = pairs[start : start + QUERIES_AT_A_TIME]
            for pair, scores in zip(some, index.scores([pair.query for pair in some]), strict=True):
                best = np.argsort(-scores, kind="stable")[mining.first - 1 : mining.last]
                ranked = [texts[place] for place in best if scores[place] > 0]
                random.Random(f"{seed} {pair.query} {pair.positive}").shuffle(ranked)
                query = numbers.of(pair.query)
                unwanted = {query, *relevant.get(query, ()), *map(numbers.of, pair.negatives)}
                found: list[str] = []
                for text in ranked:
                    if len(found) < mining.count and numbers.of(text) not in unwanted:
                        unwanted.add(numbers.of(text))
                        found.append(text)
                tally.read["pairs with too few BM25 negatives"] += len(found) < mining.count
                made.append(replace(pair, negatives=(*pair.negatives, *found)))
            bar.update(len(some))
    return made
