"""The order in which the rows of a token tree are computed, so that stems are kept briefly and batches are even."""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from megagpt.model.token_tree import Row
from megagpt.model.tree_pass import PlacedRow, TokenPool

COLUMNS = 8
"""Keys of a pass, padding and prefixes included, are at most this many times its token budget."""
SIMILAR = 64
"""Rows of one pass have prefixes of 0, of 1 to this many, of up to twice this many tokens, ...: little is padding."""


def passes(rows: Sequence[Row], pool: TokenPool, batch_tokens: int, window: int) -> Iterator[list[PlacedRow]]:
    """The rows in batches of about `batch_tokens` tokens, each after the one that it goes on from.

    A batch must have been computed when the next one is asked for. Stems' slots are taken from the pool, and given back
    after the last row that needs them. The pool has at least `window` slots, and no sequence has more tokens.

    Many stems are computed together where the pool has room beside them for a whole sequence. So the first one in depth
    first order, with those that it goes on from, always finds room, and the stems before it are needed no more.
    """
    open_children = [len(row.children) for row in rows]
    paths: dict[int, np.ndarray] = {-1: np.zeros(0, dtype=np.int64)}  # slots of a stem's tokens and those before
    stems = [number for number, row in enumerate(rows) if row.parent < 0 and row.children]  # ready, a heap
    leaves = [number for number, row in enumerate(rows) if row.parent < 0 and not row.children]  # ready
    while stems or leaves:
        chosen = []
        while stems and (pool.free - len(rows[stems[0]].tokens) >= window or not (leaves or chosen)):
            number = heapq.heappop(stems)
            paths[number] = np.concatenate((paths[rows[number].parent], pool.take(len(rows[number].tokens))))
            chosen.append(number)
        for batch in _batches(rows, chosen or leaves, batch_tokens):
            yield [
                PlacedRow(row, paths[row.parent], paths[number][row.start :] if row.children else paths[-1])
                for number, row in ((number, rows[number]) for number in batch)
            ]
        if not chosen:
            for number in leaves:
                _finish(number, rows, pool, open_children, paths)
            leaves = []
        for number in chosen:
            for child in rows[number].children:
                if rows[child].children:
                    heapq.heappush(stems, child)
                else:
                    leaves.append(child)


def _batches(rows: Sequence[Row], numbers: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows of these numbers in batches of similar ones."""
    batch: list[int] = []
    tokens, widths = 0, (0, 0, 0)
    for number in sorted(numbers, key=lambda number: _likeness(rows[number])):
        row = rows[number]
        own = row.start, row.trunk, len(row.tokens) - row.trunk
        wider = tuple(map(max, widths, own))
        too_many = tokens + len(row.tokens) > batch_tokens or (len(batch) + 1) * sum(wider) > COLUMNS * batch_tokens
        if batch and (too_many or _likeness(row)[0] != _likeness(rows[batch[0]])[0]):
            yield batch
            batch, tokens, wider = [], 0, own
        batch.append(number)
        tokens, widths = tokens + len(row.tokens), wider
    if batch:
        yield batch


def _likeness(row: Row) -> tuple[int, int, int]:
    """Rows with the same first number may share a pass; of those, the nearer the others are, the less is padding."""
    return -(-row.start // SIMILAR), row.trunk, row.start


def _finish(number: int, rows: Sequence[Row], pool: TokenPool, open_children: list[int], paths: dict) -> None:
    """A row is done, and with it every stem of which it was the last."""
    while (number := rows[number].parent) >= 0:
        open_children[number] -= 1
        if open_children[number]:
            return
        pool.give_back(paths.pop(number)[rows[number].start :])
