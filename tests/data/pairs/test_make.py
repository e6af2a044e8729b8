"""Duplicates, near-duplicates, splits and samples."""

from collections import Counter

import pytest

from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.make import Numbers, Selection, distinct, in_split, sample, together, unlike
from megagpt.data.pair_sources.near import NearDuplicates
from megagpt.data.pairs import text_key
from megagpt.errors import ConfigError

LONG = "the quick brown fox jumps over the lazy dog while the rain in Spain stays mainly in the plain of the river"


def test_exact_duplicates_differ_in_case_space_and_punctuation_at_most():
    tally = Tally()
    pairs = [
        FoundPair("A b", "C d"), FoundPair("a  b!", "c, d"), FoundPair("a b", "other"), FoundPair("Same.", "same"),
    ]  # fmt: skip
    assert list(distinct(pairs, tally)) == [pairs[0], pairs[2]]
    assert tally.dropped == {"pair: exact duplicate": 1, "pair: both texts are the same": 1}


def test_near_duplicates_have_most_runs_in_common():
    near = NearDuplicates()
    assert near.add(LONG, 1) is None
    assert near.add(LONG.replace("quick", "quiet"), 2) == 1
    assert near.add("something else entirely, about boats and the sea and the people who live there", 3) is None
    assert near.add(LONG.upper(), 4) == 1
    assert near.add("cat", 5) is None
    assert near.add("Cat.", 6) == 5


def test_generated_pairs_lose_near_duplicates_and_the_first_stays():
    pairs = [FoundPair("one", LONG), FoundPair("two", LONG + " again"), FoundPair("three", "quite another text")]
    tally = Tally()
    assert list(unlike(pairs, 0.85, False, tally)) == [pairs[0], pairs[2]]
    assert tally.dropped == {"pair: near-duplicate": 1}
    assert list(unlike(pairs, 0, False, Tally())) == pairs


def test_near_duplicates_of_labelled_sets_get_the_number_of_the_first():
    numbers, tally = Numbers(0.85), Tally()
    first = numbers.numbered(FoundPair("one", LONG), tally)
    second = numbers.numbered(FoundPair("two", LONG + " again", ("a wrong answer",)), tally)
    assert first.text_ids == ()
    assert second.text_ids == (text_key("two"), text_key(LONG), text_key("a wrong answer"))


def test_a_negative_that_is_its_positive_goes_and_one_that_is_nearly_it_keeps_a_number_of_its_own():
    tally = Tally()
    pair = FoundPair("one", LONG, (LONG.upper(), f"not {LONG}", "wrong", "Wrong!"))
    made = Numbers(0.85).numbered(pair, tally)
    assert made.negatives == (f"not {LONG}", "wrong")
    assert len(set(made.text_ids or map(text_key, made.texts))) == 4
    assert tally.dropped == {"negative: the same as another text of its pair": 2}


def test_pairs_that_share_a_text_are_in_one_split():
    pairs = [
        FoundPair("q1", "d1", document="1"),
        FoundPair("q2", "d2", document="2"),
        FoundPair("Q1!", "d2", document="3"),
        FoundPair("q4", "d4", document="4"),
        FoundPair("q5", "d5", document="5", split_key="repository"),
        FoundPair("q6", "d6", document="6", split_key="repository"),
    ]
    keys = [pair.split_key for pair in together(pairs, Numbers(0))]
    assert keys == ["1", "1", "1", "4", "repository", "repository"]


def test_splits_cover_everything_and_share_no_key():
    pairs = [FoundPair(f"q{number}", f"d{number}", split_key=str(number // 3)) for number in range(3000)]
    parts = {
        split: list(in_split(pairs, Selection(split, (0.8, 0.1, 0.1)), Tally()))
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, parts.values())) == 3000
    assert len(parts["train"]) == pytest.approx(2400, abs=150)
    keys = [{pair.split_key for pair in part} for part in parts.values()]
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]


def test_samples_are_even_ordered_and_the_same_for_the_same_seed():
    pairs = [FoundPair(str(number), "") for number in range(20)]
    counts = Counter(
        pair.query for seed in range(2000) for pair in sample(pairs, Selection(max_pairs=5, seed=seed))
    )  # fmt: skip
    assert all(400 < counts[pair.query] < 600 for pair in pairs)  # 500, and 5 standard deviations
    kept = sample(pairs, Selection(max_pairs=5, seed=3))
    assert kept == sample(iter(pairs), Selection(max_pairs=5, seed=3))
    assert kept == sorted(kept, key=lambda pair: int(pair.query))
    assert sample(pairs, Selection(max_pairs=50)) == pairs


@pytest.mark.parametrize(
    "wrong",
    [
        {"shares": ()},
        {"shares": (1, -1, 1)},
        {"split": "test", "shares": (1, 0, 0)},
        {"max_pairs": 0},
        {"near_duplicates": 2},
    ],
)
def test_selections_that_cannot_be_met_are_refused(wrong):
    with pytest.raises(ConfigError, match="--"):
        Selection(**wrong)
