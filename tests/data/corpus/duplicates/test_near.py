"""Near-duplicates are those that comparing all pairs finds, and leaders those of a plain loop."""

import random
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from megagpt.data.corpus.duplicates import near
from megagpt.data.corpus.duplicates.minhash import MinHash, bucket_keys, signature
from megagpt.data.corpus.duplicates.runs import Runs, write_runs
from megagpt.data.corpus.duplicates.tables import gather, place_of, shard_and_number

SETTING = MinHash(words=5, buckets=14, hashes=4)


def sets(count: int, seed: int = 0) -> list[np.ndarray]:
    """Hashes of runs, of which many sets share a part with an earlier one, and some have none."""
    dice = random.Random(seed)
    made: list[set[int]] = []
    for _ in range(count):
        runs = {dice.randrange(1 << 64) for _ in range(dice.choice((3, 20, 60)))}
        if made and dice.random() < 0.7:
            runs = set(made[dice.randrange(len(made))])
            for old in dice.sample(sorted(runs), len(runs) * dice.choice((0, 1, 3)) // 10):
                runs ^= {old, dice.randrange(1 << 64)}
        made.append(set() if dice.random() < 0.03 else runs)
    return [np.array(sorted(runs), np.uint64) for runs in made]


def find(
    folder: Path, runs: list[np.ndarray], shards: int, tasks: int, references: int = 0, verify: float | None = None
) -> dict[int, int]:
    """Numbers of the documents that are not kept, with that of the one kept in their stead."""
    cuts = [len(runs) * shard // shards for shard in range(shards + 1)]
    parts = [list(enumerate(runs[a:b])) for a, b in pairwise(cuts)]
    first = place_of(references)
    signed, edges, members, split, found = (folder / name for name in ("signed", "edges", "members", "split", "found"))
    for shard, part in enumerate(parts):
        near.sign(signed, shard, part, SETTING)
    for task in range(tasks):
        near.match(signed, edges, task, tasks, first)
    near.find_components(edges, members, tasks)
    for shard, part in enumerate(parts):
        numbers = near.split(signed, members, split, shard)
        write_runs(folder / "runs", shard, [part[number] for number in numbers])
    stored = Runs(folder / "runs", cache_bytes=2000)
    similar = None if verify is None else lambda one, other: stored.similarity(one, other) >= verify
    count = sum(near.cluster(split, members, found, task, first, similar) for task in range(tasks))
    rows = gather(found, 2).tolist()
    assert count == len(rows)

    def number_of(place: int) -> int:
        shard, number = shard_and_number(place)
        return cuts[shard] + number

    return {number_of(place): number_of(leader) for place, leader in rows}


def alike(runs: list[np.ndarray]) -> set[tuple[int, int]]:
    """All pairs with a bucket in common, by comparing all signatures."""
    signatures = [signature(part, SETTING) if len(part) else None for part in runs]
    return {
        (one, other)
        for one, other in combinations(range(len(runs)), 2)
        if len(runs[one]) and len(runs[other]) and (signatures[one] == signatures[other]).all(axis=1).any()
    }


def leaders(pairs: set[tuple[int, int]], count: int, references: int = 0) -> dict[int, int]:
    """The leader rule as a plain loop over pairs that count as duplicates."""
    dropped: dict[int, int] = {}
    for one in range(references, count):
        before = [other for other in range(one) if (other, one) in pairs and other not in dropped]
        if before:
            dropped[one] = min(before)
    return dropped


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    shared, united = set(one.tolist()) & set(other.tolist()), set(one.tolist()) | set(other.tolist())
    return len(shared) / len(united)


@pytest.mark.parametrize(("shards", "tasks"), [(1, 1), (3, 1), (3, 4), (11, 5)])
def test_leaders_are_those_of_all_pairs(tmp_path, shards, tasks):
    runs = sets(240)
    pairs = alike(runs)
    expected = leaders(pairs, len(runs))
    assert find(tmp_path, runs, shards, tasks) == expected and len(expected) > 50
    joined = {other for one, other in pairs} - set(expected)
    assert joined, "no chain in these sets: they would not tell leaders from components"


@pytest.mark.parametrize("tasks", [1, 3])
def test_verified_by_true_similarity(tmp_path, tasks):
    runs = sets(240, seed=1)
    pairs = {(one, other) for one, other in alike(runs) if jaccard(runs[one], runs[other]) >= 0.8}
    expected = leaders(pairs, len(runs))
    assert find(tmp_path, runs, 3, tasks, verify=0.8) == expected
    assert expected != leaders(alike(runs), len(runs)), "nothing to refuse"


@pytest.mark.parametrize("verify", [None, 0.8])
def test_documents_of_references_are_kept(tmp_path, verify):
    runs = sets(200, seed=2)
    pairs = {(one, other) for one, other in alike(runs) if verify is None or jaccard(runs[one], runs[other]) >= verify}
    expected = leaders(pairs, len(runs), references=100)
    assert find(tmp_path, runs, 4, 2, references=2, verify=verify) == expected
    assert min(expected) >= 100 and any(leader < 100 for leader in expected.values())


def test_a_chain_is_not_one_cluster(tmp_path):
    """B is like A and like C, but C is not like A: B goes, and C stays."""
    dice = random.Random(3)
    while True:
        numbers = [dice.randrange(1 << 64) for _ in range(140)]
        runs = [np.array(sorted(numbers[start : start + 100]), np.uint64) for start in (0, 20, 40)]
        if alike(runs) == {(0, 1), (1, 2)}:
            break
    assert find(tmp_path, runs, 1, 1) == {1: 0}


def test_signatures_are_datatroves(tmp_path):
    pytest.importorskip("datatrove", reason="megagpt[corpora] is not installed")
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        word_tokenize = sent_tokenize = span_tokenize = None

    for buckets, hashes in ((14, 8), (3, 5)):
        theirs = MinhashDedupSignature(str(tmp_path), MinhashConfig(5, buckets, hashes), language=Words())
        for runs in (part for part in sets(40) if len(part)):
            expected = theirs.get_signature(runs.reshape(-1, 1))
            assert signature(runs, MinHash(5, buckets, hashes)).tolist() == expected


def test_keys_are_equal_where_buckets_are():
    runs = sets(60)
    signatures = [signature(part, SETTING) for part in runs]
    keys = [bucket_keys(part, SETTING) for part in runs]
    for one, other in combinations([number for number in range(60) if len(runs[number])], 2):
        same = (signatures[one] == signatures[other]).all(axis=1)
        assert ((keys[one][:, None] == keys[other][None]) == np.diag(same)).all()
    assert bucket_keys(np.zeros(0, np.uint64), SETTING).shape == (0,)


def test_the_chance_to_be_found_is_what_is_found():
    dice, setting = np.random.default_rng(0), MinHash(5, 14, 8)
    assert setting.chance(0.8) == pytest.approx(0.924, abs=0.001) and setting.chance(1) == 1
    found = 0
    for _ in range(400):
        numbers = dice.integers(0, 1 << 63, 130, dtype=np.uint64)
        one, other = numbers[:115], numbers[15:]  # 100 of 130 in common
        found += bool(set(bucket_keys(one, setting).tolist()) & set(bucket_keys(other, setting).tolist()))
    expected = setting.chance(100 / 130)
    assert abs(found / 400 - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5


@pytest.mark.parametrize("documents", [[], [np.zeros(0, np.uint64)], [np.arange(9, dtype=np.uint64)]])
def test_nothing_is_like_nothing(tmp_path, documents):
    assert find(tmp_path, documents, 1, 2) == {}
