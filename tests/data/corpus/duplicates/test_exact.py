"""Exact duplicates are those that a dict finds, however the work is cut."""

import random

import numpy as np
import pytest

from megagpt.data.corpus.duplicates.exact import find_repeated, found_in, hash_texts, offer
from megagpt.data.corpus.duplicates.tables import place_of


@pytest.mark.parametrize(("shards", "tasks"), [(1, 1), (4, 1), (4, 3), (13, 8)])
def test_against_a_dict(tmp_path, shards, tasks):
    dice = random.Random(1)
    texts = [f"text {dice.randrange(150)}" for _ in range(400)]
    parts = [texts[len(texts) * shard // shards : len(texts) * (shard + 1) // shards] for shard in range(shards)]
    firsts: dict[str, int] = {}
    expected = [
        {number: firsts[text] for number, text in enumerate(part) if firsts.setdefault(text, place_of(shard, number))
         != place_of(shard, number)}
        for shard, part in enumerate(parts)
    ]  # fmt: skip
    for shard, part in enumerate(parts):
        offer(tmp_path / "offered", shard, hash_texts(part))
    count = sum(find_repeated(tmp_path / "offered", tmp_path / "found", task, tasks) for task in range(tasks))
    assert [found_in(tmp_path / "found", shard) for shard in range(shards)] == expected
    assert count == sum(map(len, expected)) > 200


def test_both_halves_of_a_hash_count_and_numbers_are_kept(tmp_path):
    offer(tmp_path / "offered", 0, np.array([[1, 2], [1, 3], [2, 2], [1, 2]], np.uint64), np.array([5, 6, 7, 9]))
    find_repeated(tmp_path / "offered", tmp_path / "found", 0, 1)
    assert found_in(tmp_path / "found", 0) == {9: place_of(0, 5)}


def test_nothing_is_no_duplicate(tmp_path):
    assert hash_texts([]).shape == (0, 2)
    offer(tmp_path / "offered", 0, hash_texts([]))
    assert find_repeated(tmp_path / "offered", tmp_path / "found", 0, 1) == 0
    assert found_in(tmp_path / "found", 0) == found_in(tmp_path / "nothing", 0) == {}
