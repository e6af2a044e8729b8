"""Order of samples: a pure function of (seed, index), complete in every epoch, in exact proportions."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data.indexed import write_corpus
from megagpt.data.packed import BLOCK, SPLITS, Mixture, PackedCorpus, documents_of, permutation
from megagpt.errors import DataError

ABOUT = {"tokenizer_sha256": "0" * 64, "vocab_size": 65_499}
TRAIN_ONLY = (1.0, 0.0, 0.0)


def make_corpus(prefix: Path, lengths: list[int]) -> list[np.ndarray]:
    """A corpus whose tokens are 1, 2, 3 ... so that every token says where it comes from."""
    ends = np.cumsum(lengths)
    documents = [np.arange(end - length, end) + 1 for length, end in zip(lengths, ends, strict=True)]
    write_corpus(prefix, ((np.array([len(d)], np.int32), d) for d in documents), len(documents), ABOUT)
    return documents


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text"
    make_corpus(path, np.random.default_rng(0).integers(1, 60, 200).tolist())
    return path


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20), length=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_window_of_an_epoch_exactly_once(tmp_path_factory, lengths, length, seed):
    path = tmp_path_factory.mktemp("corpus") / "text"
    documents = make_corpus(path, lengths)
    corpus = PackedCorpus(path, TRAIN_ONLY, "train", length, seed)
    total = sum(lengths)
    assert corpus.samples_per_epoch == (total - 1) // length
    for epoch in range(2 if corpus.samples_per_epoch else 0):
        first = epoch * corpus.samples_per_epoch
        samples = [corpus[first + k] for k in range(corpus.samples_per_epoch)]
        inputs = np.concatenate([sample[:-1] for sample in samples])
        assert len(set(inputs)) == len(inputs) == corpus.samples_per_epoch * length  # none twice
        follows = {int(a): int(b) for sample in samples for a, b in pairwise(sample)}
        for document in documents:  # inside a document each token is followed by its successor
            assert all(follows.get(int(token), token + 1) == token + 1 for token in document[:-1])
    assert np.array_equal(corpus.read(0, total), np.arange(1, total + 1))


def test_random_access_equals_sequential(prefix):
    corpus = PackedCorpus(prefix, TRAIN_ONLY, "train", 16, 7)
    count = 3 * corpus.samples_per_epoch + 5
    sequential = [corpus[index] for index in range(count)]
    fresh = PackedCorpus(prefix, TRAIN_ONLY, "train", 16, 7)
    for index in np.random.default_rng(0).permutation(count):
        assert np.array_equal(fresh[index], sequential[index])


def test_epochs_and_seeds_differ(prefix):
    corpus = PackedCorpus(prefix, TRAIN_ONLY, "train", 16, 7)
    first = np.stack([corpus[index] for index in range(corpus.samples_per_epoch)])
    second = np.stack([corpus[corpus.samples_per_epoch + index] for index in range(corpus.samples_per_epoch)])
    other = PackedCorpus(prefix, TRAIN_ONLY, "train", 16, 8)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.stack([other[index] for index in range(corpus.samples_per_epoch)]))


def test_splits_cover_all_documents_once(prefix):
    splits = [PackedCorpus(prefix, (0.5, 0.3, 0.2), split, 16) for split in SPLITS]
    assert sorted(np.concatenate([split.documents for split in splits])) == list(range(200))
    assert sum(split.num_tokens for split in splits) == splits[0].about["tokens"]


@given(count=st.integers(1, 5000), proportions=st.tuples(*[st.floats(0, 1)] * 3).filter(lambda s: sum(s) > 0.1))
def test_splits_of_documents(count, proportions):
    splits = [documents_of(split, proportions, count) for split in SPLITS]
    assert sorted(np.concatenate(splits)) == list(range(count))
    for documents, share in zip(splits, proportions, strict=True):
        expected = share / sum(proportions) * count
        assert abs(len(documents) - expected) <= 5 * np.sqrt(expected) + 5  # five standard deviations
        assert share > 0 or not len(documents)
    more = documents_of("train", proportions, count + 100)
    assert np.array_equal(more[more < count], splits[0])  # new documents move no old one


@given(count=st.integers(1, 3000), keys=st.lists(st.integers(0, 2**63), max_size=3))
def test_permutation(count, keys):
    order = permutation(count, *keys)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert count < 20 or not np.array_equal(order, np.arange(count))


def test_permutations_have_no_trend():
    orders = np.stack([permutation(50, 1, epoch) for epoch in range(4000)])
    standard_error = np.std(np.arange(50)) / np.sqrt(len(orders))
    assert np.abs(orders.mean(0) - 24.5).max() < 5 * standard_error


def test_too_short_part_says_what_to_do(tmp_path):
    make_corpus(tmp_path / "text", [5, 5])
    corpus = PackedCorpus(tmp_path / "text", TRAIN_ONLY, "train", 10)
    with pytest.raises(DataError, match=r"too short for one sequence of 10 \+ 1 tokens.*data\.split"):
        corpus[0]


class Numbers:
    """A corpus whose sample i is (name, i)."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.name, index


@given(weights=st.lists(st.floats(0, 1000), min_size=1, max_size=6).filter(lambda w: max(w) > 0.01))
@settings(max_examples=25, deadline=None)
def test_blend_proportions_and_completeness(weights):
    mixture = Mixture([Numbers(n) for n in range(len(weights))], weights, seed=3)
    places = [mixture.locate(index) for index in range(2 * BLOCK)]
    for number, weight in enumerate(weights):
        within = [index for corpus, index in places if corpus == number]
        assert within == list(range(len(within)))  # each sample of a corpus in its own order, none left out
        in_block = sum(corpus == number for corpus, _ in places[:BLOCK])
        assert len(within) == 2 * in_block
        exact = BLOCK * weight / sum(weights)
        slack = sum(0 < BLOCK * w / sum(weights) < 1 for w in weights)  # what raised minima take from the largest
        assert abs(in_block - exact) <= 1 + slack
        assert (in_block > 0) == (weight > 0)
        half = sum(corpus == number for corpus, _ in places[: BLOCK // 2])
        assert abs(half - in_block / 2) <= len(weights)  # evenly spread inside the block


def test_blend_is_a_pure_function_of_seed_and_index():
    weights = [0.7, 0.2, 0.1]
    indices = np.random.default_rng(0).integers(0, 20 * BLOCK, 200)
    one, two, other = (Mixture([Numbers(n) for n in range(3)], weights, seed) for seed in (5, 5, 6))
    expected = {index: one[index] for index in sorted(indices)}
    assert all(two[index] == expected[index] for index in indices)
    assert any(other[index] != expected[index] for index in indices)
