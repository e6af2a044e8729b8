"""Order in which the rows of a token tree are computed: it keeps stems for a short time and makes even batches."""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from megagpt.model.token_tree import Row
from megagpt.model.tree_pass import PlacedRow, TokenPool

COLUMNS = 8
"""Limit of the keys in a pass, padding and prefixes included, as a multiple of its token budget."""
SIMILAR = 64
"""Rows of one pass have prefixes of similar length, which limits padding: they differ by less than this many tokens."""


def passes(rows: Sequence[Row], pool: TokenPool, batch_tokens: int, window: int) -> Iterator[list[PlacedRow]]:
    """The rows in batches of about `batch_tokens` tokens; each row comes after the row that it continues.

    The caller must compute a batch before it asks for the next one. Slots for stems are taken from the pool and given
    back after the last row that needs them. The pool must have at least `window` slots, and no sequence may have more
    than `window` tokens.

    Several stems are computed together while the pool keeps room for a whole sequence beside them. So the next stem in
    depth-first order, with the stems that it continues, always finds room: the other stems before it are done.
    """
    open_children = [len(row.children) for row in rows]
    paths: dict[int, np.ndarray] = {-1: np.zeros(0, dtype=np.int64)}  # stem -> slots of all tokens up to its end
    stems = [number for number, row in enumerate(rows) if row.parent < 0 and row.children]  # a heap of ready stems
    leaves = [number for number, row in enumerate(rows) if row.parent < 0 and not row.children]  # other ready rows
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
    """The rows with these numbers, in batches of similar rows."""
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
    """Sort key: rows with the same first number may share a pass; rows with close keys need little padding."""
    return -(-row.start // SIMILAR), row.trunk, row.start


def _finish(number: int, rows: Sequence[Row], pool: TokenPool, open_children: list[int], paths: dict) -> None:
    """After a row is done, free the slots of every stem that no other row needs."""
    while (number := rows[number].parent) >= 0:
        open_children[number] -= 1
        if open_children[number]:
            return
        pool.give_back(paths.pop(number)[rows[number].start :])
