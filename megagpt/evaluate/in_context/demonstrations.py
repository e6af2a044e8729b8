"""Which examples of the training part stand before a question.

GPT-3 draws them anew for every question (arXiv 2005.14165, section 2.4). Here a draw depends on the seed and on the
question's content alone, so that a question has the same demonstrations whatever else is asked, in whatever order and
on however many ranks.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any


def content(example: Mapping[str, Any]) -> str:
    """An example as text, the same for the same fields and values."""
    return json.dumps(example, sort_keys=True, ensure_ascii=False, default=str)


def draw(seed: int, question: str, pool: int, count: int, skip: Callable[[int], bool]) -> list[int]:
    """`count` different numbers below `pool`, without those for which `skip` is true; fewer where no more are there.

    It is the beginning of a shuffle of the whole pool that SHA-256 of seed, question and place decides. The shuffle
    does not know `count`, so the draw of K is the beginning of the draw of K + 1.
    """
    start = hashlib.sha256(f"{seed}\n{question}\n".encode("utf-8", "surrogatepass"))
    drawn: list[int] = []
    moved: dict[int, int] = {}  # Fisher and Yates' shuffle, of which only what differs from the sorted order is kept
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
