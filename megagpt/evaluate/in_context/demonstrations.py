"""Draws the demonstrations of a question from the training part.

GPT-3 draws new ones for every question (arXiv 2005.14165, section 2.4). Here a draw depends only on the seed and the
question's content. So a question has the same demonstrations in any order of questions and on any number of ranks.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any


def content(example: Mapping[str, Any]) -> str:
    """An example as text; equal for examples with equal fields and values."""
    return json.dumps(example, sort_keys=True, ensure_ascii=False, default=str)


def draw(seed: int, question: str, pool: int, count: int, skip: Callable[[int], bool]) -> list[int]:
    """`count` different numbers below `pool` for which `skip` is false; fewer if the pool has fewer.

    They are the beginning of a Fisher-Yates shuffle of the pool, driven by SHA-256 of seed, question and position. The
    shuffle does not depend on `count`, so the draw of K numbers is the beginning of the draw of K + 1.
    """
    start = hashlib.sha256(f"{seed}\n{question}\n".encode("utf-8", "surrogatepass"))
    drawn: list[int] = []
    moved: dict[int, int] = {}  # {position: number} where the shuffled order differs from the sorted order
    for place in range(pool):
        if len(drawn) == count:
            break
        hashed = start.copy()
        hashed.update(str(place).encode())
        other = place + int.from_bytes(hashed.digest()[:8]) % (pool - place)
        number = moved.get(other, other)
        moved[other] = moved.get(place, place)
        if not skip(number):
            drawn.append(number)
    return drawn
