"""A tree of tokens holds every prefix once, in rows by which each token sees exactly what is before it."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.model import token_tree
from megagpt.model.token_tree import Row, token_rows
from megagpt.model.tree_pass import TokenPool
from megagpt.model.tree_schedule import passes

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=20)
"""Of three tokens, so that many of them begin alike."""


def rows_of(sequences: list[list[int]], branches: int, asked: list[int] | None = None) -> list[Row]:
    arrays = [np.array(sequence) for sequence in sequences]
    with patch.object(token_tree, "BRANCHES", branches):
        return token_rows(arrays, list(map(len, sequences)) if asked is None else asked)


def seen_by(rows: list[Row], number: int, offset: int) -> list[int]:
    """The tokens that a row's token sees, itself the last."""
    row = rows[number]
    before = seen_by(rows, row.parent, len(rows[row.parent].tokens) - 1) if row.parent >= 0 else []
    assert len(before) == row.start
    if offset < row.trunk:
        return before + row.tokens[: offset + 1].tolist()
    place = offset - row.trunk
    branches = [token for at, token in enumerate(row.tokens[row.trunk :]) if at <= place < row.ends[at]]
    return before + row.tokens[: row.trunk].tolist() + branches


@pytest.mark.parametrize("branches", [0, 3, 256])
@given(sequences=SEQUENCES)
def test_each_prefix_stands_once_and_sees_itself(branches, sequences):
    rows = rows_of(sequences, branches)
    found = [tuple(seen_by(rows, number, at)) for number, row in enumerate(rows) for at in range(len(row.tokens))]
    prefixes = {tuple(sequence[: end + 1]) for sequence in sequences for end in range(len(sequence))}
    assert sorted(found) == sorted(prefixes)
    positions = [position for row in rows for position in row.positions]
    assert positions == [len(prefix) - 1 for prefix in found]
    assert all(len(row.tokens) - row.trunk <= branches for row in rows)
    assert all(row.trunk == len(row.tokens) for row in rows if row.children)  # branches of a stem are other rows


@pytest.mark.parametrize("branches", [0, 3, 256])
@given(sequences=SEQUENCES, data=st.data())
def test_what_is_asked_of_a_sequence_is_asked_after_its_own_prefixes(branches, sequences, data):
    asked = [data.draw(st.integers(0, len(sequence))) for sequence in sequences]
    rows = rows_of(sequences, branches, asked)
    answers = {number: {} for number in range(len(sequences))}
    for number, row in enumerate(rows):
        for ask in row.asks:
            for step in range(ask.count):
                assert ask.depth + step not in answers[ask.sequence]
                answers[ask.sequence][ask.depth + step] = seen_by(rows, number, ask.offset + step)
    for sequence, count, answer in zip(sequences, asked, answers.values(), strict=True):
        depths = range(len(sequence) - count, len(sequence))
        assert answer == {depth: sequence[: depth + 1] for depth in depths}


@pytest.mark.parametrize("batch_tokens", [1, 5, 1000])
@given(sequences=SEQUENCES, spare=st.integers(0, 20))
def test_all_rows_find_what_is_before_them_in_a_pool_of_any_size(batch_tokens, sequences, spare):
    rows = rows_of(sequences, 0)
    pool, holds, order = TokenPool(1, 12 + spare), {}, []
    for batch in passes(rows, pool, batch_tokens, window=12):
        for placed in batch:
            number = next(at for at, row in enumerate(rows) if row is placed.row)
            order.append(number)
            parent = placed.row.parent
            before = seen_by(rows, parent, len(rows[parent].tokens) - 1) if parent >= 0 else []
            assert [holds[slot] for slot in placed.prefix.tolist()] == before  # nobody wrote over them
        for placed in batch:
            assert len(placed.slots) == (len(placed.row.tokens) if placed.row.children else 0)
            holds |= dict(zip(placed.slots.tolist(), placed.row.tokens.tolist(), strict=False))
        assert len(batch) == 1 or sum(len(placed.row.tokens) for placed in batch) <= batch_tokens
    assert sorted(order) == list(range(len(rows)))
    assert pool.free == pool.size
