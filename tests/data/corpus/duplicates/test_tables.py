"""Tables give each task the rows of its keys."""

import random
from itertools import pairwise

import numpy as np
import pytest

from megagpt.data.corpus.duplicates.tables import (
    KEYS,
    gather,
    key_range,
    place_of,
    places_of,
    read_rows,
    shard_and_number,
    table_path,
    write_table,
)


def test_places():
    assert [shard_and_number(place_of(*pair)) for pair in ((0, 0), (7, 9), (499, 2**32 - 1))] == [
        (0, 0),
        (7, 9),
        (499, 2**32 - 1),
    ]
    assert places_of(3, np.array([0, 5])).tolist() == [place_of(3, 0), place_of(3, 5)]


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 64])
def test_ranges_are_all_keys(tasks):
    ranges = [key_range(task, tasks) for task in range(tasks)]
    assert ranges[0][0] == 0 and ranges[-1][1] == KEYS
    assert all(one[1] == other[0] for one, other in pairwise(ranges))


@pytest.mark.parametrize("tasks", [1, 5])
def test_rows_are_gathered_as_a_plain_filter_would(tmp_path, tasks):
    dice = random.Random(0)
    keys = [0, KEYS - 1, *(dice.randrange(KEYS) for _ in range(40))]
    tables = [[(dice.choice(keys), number) for number in range(size)] for size in (0, 1, 300, 17)]
    for number, rows in enumerate(tables):
        write_table(tmp_path, number, np.array(rows, np.uint64).reshape(-1, 2))
    assert read_rows(table_path(tmp_path, 2), 2).tolist() == [list(row) for row in sorted(tables[2])]
    for task in range(tasks):
        low, high = key_range(task, tasks)
        rows = [list(row) for table in tables for row in table if low <= row[0] < high]
        assert gather(tmp_path, 2, low, high).tolist() == sorted(rows, key=lambda row: row[0])
    assert gather(tmp_path / "none", 3).shape == (0, 3)
