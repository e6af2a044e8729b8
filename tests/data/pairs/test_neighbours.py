"""Neighbouring passages of a document."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.cli.data.pairs import command
from megagpt.data.pair_sources.found import Tally
from megagpt.data.pair_sources.neighbours import Neighbours, neighbour_pairs, passages
from megagpt.errors import ConfigError

PARAGRAPHS = [f"Paragraph {number} says {'something ' * 4}here." for number in range(8)]
TEXT = "\n\n".join(PARAGRAPHS)


def pairs(text: str, seed: int = 0, **options) -> list[tuple[str, str]]:
    found = neighbour_pairs(text, "file:1", Neighbours(**options), seed, Tally())
    return [(pair.query, pair.positive) for pair in found]


def test_paragraphs_are_passages_and_neighbours_follow_each_other():
    found = pairs(TEXT, min_length=60, max_length=70, per_document=3)
    places = [(PARAGRAPHS.index(query), PARAGRAPHS.index(positive)) for query, positive in found]
    assert len(places) == 3
    assert all(second == first + 1 for first, second in places)
    assert len({place for both in places for place in both}) == 6  # no passage twice


def test_distance_leaves_passages_between():
    gaps = {
        PARAGRAPHS.index(positive) - PARAGRAPHS.index(query)
        for seed in range(40)
        for query, positive in pairs(TEXT, seed, min_length=60, max_length=70, distance=2)
    }
    assert gaps == {1, 2, 3}


def test_long_paragraphs_are_cut_at_sentences_and_those_of_other_scripts_too():
    text = "One sentence is here. Another one follows! Is a third one there? Yes, a fourth."
    found = passages(text, Neighbours(15, 25), random.Random(0))
    assert (
        found
        == ["One sentence is here.", "Another one follows!", "Is a third one there?", "Yes, a fourth."][: len(found)]
    )
    assert passages("天気がいい。散歩に行く。犬も来る。", Neighbours(5, 7), random.Random(0)) == [
        "天気がいい。",
        "散歩に行く。",
        "犬も来る。",
    ]


@given(st.text(alphabet="ab .\n!", max_size=300), st.integers(1, 20), st.integers(0, 40), st.integers(0, 5))
def test_passages_have_the_lengths_asked_for_and_stand_in_the_text_in_order(text, least, more, seed):
    found = passages(text, Neighbours(least, least + more), random.Random(seed))
    at = 0
    for passage in found:
        assert least <= len(passage) <= least + more
        at = text.index(passage, at) + len(passage)


def test_lengths_may_be_words():
    found = passages("a b c d e f g h i j", Neighbours(3, 4, "words"), random.Random(0))
    assert all(3 <= len(passage.split()) <= 4 for passage in found)
    assert found


def test_same_seed_same_pairs_and_others_for_another():
    options = {"min_length": 60, "max_length": 70}
    assert pairs(TEXT, 3, **options) == pairs(TEXT, 3, **options)
    assert len({tuple(pairs(TEXT, seed, **options)) for seed in range(20)}) > 1


def test_short_documents_are_counted():
    tally = Tally()
    assert not list(neighbour_pairs("short", "a.txt:1", Neighbours(), 0, tally))
    assert tally.dropped == {"document without two passages of the lengths asked for": 1}


@pytest.mark.parametrize(
    "wrong", [{"min_length": 0}, {"min_length": 9, "max_length": 8}, {"distance": -1}, {"per_document": 0}]
)
def test_impossible_lengths_are_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        Neighbours(**wrong)
    named = re.findall(r"--[a-z-]+", str(caught.value))
    assert f"--{next(iter(wrong)).replace('_', '-')}" in named
    assert {*named} <= {option for parameter in command.params for option in parameter.opts}
