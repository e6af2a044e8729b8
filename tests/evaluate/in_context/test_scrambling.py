"""Words scrambled by program: each can be solved, and OpenAI's files obey the same rules."""

import gzip
import json
from collections import Counter
from itertools import permutations

import pytest
from scipy.stats import chisquare

from megagpt.errors import ConfigError
from megagpt.evaluate.in_context.scrambling import TASKS, scrambled_words

WORDS = ["level", "aaaaaaa", "rotator", "planet", "gardens", "window", "cat", "can't", "Harvest", "planet"]
WORDS += ["extraordinarily"]


def pairs(records: list[dict[str, str]]) -> list[tuple[str, str]]:
    for record in records:
        assert record["context"].startswith("\n") and record["context"].endswith(" =")
        assert record["completion"].startswith(" ")
    return [(record["context"][1:-2], record["completion"][1:]) for record in records]


def published(folder, task: str) -> list[tuple[str, str]]:
    with gzip.open(folder / "gpt3_synthetic" / f"{task}.jsonl.gz", "rt") as file:
        return pairs([json.loads(line) for line in file])


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_published_word_fits_its_task_alone(task, data_dir):
    words = published(data_dir, task)
    assert len(words) == 10_000
    assert all(TASKS[task].fits(scrambled, word) for scrambled, word in words)
    assert min(len(word) for _, word in words) == TASKS[task].shortest
    assert max(len(word) for _, word in words) == 15
    for other in TASKS.keys() - {task}:
        fitting = sum(TASKS[other].fits(scrambled, word) for scrambled, word in words)
        # All that A2 may do A1 may do too; a rotation or a reversal is rarely a shuffle of the middle.
        assert fitting == 10_000 if (task, other) == ("mid_word_2_anagrams", "mid_word_1_anagrams") else fitting < 1000


@pytest.mark.parametrize("task", sorted(TASKS))
def test_ours_fit_too(task, data_dir):
    words = [word for _, word in published(data_dir, task)]
    made = pairs(scrambled_words(task, words))
    assert len(made) > 9_700  # the others cannot be scrambled, or stand twice
    assert all(TASKS[task].fits(scrambled, word) and scrambled != word for scrambled, word in made)
    taken = {word for _, word in made}
    assert [word for _, word in made] == [word for word in words if word in taken]


def test_which_words_are_taken():
    words = {task: [word for _, word in pairs(scrambled_words(task, WORDS))] for task in TASKS}
    longer = ["planet", "gardens", "window", "harvest", "extraordinarily"]
    assert words["reversed_words"] == longer
    assert words["cycle_letters_in_word"] == words["mid_word_2_anagrams"] == ["rotator", *longer]
    assert words["mid_word_1_anagrams"] == ["level", "rotator", *longer]
    assert words["random_insertion_in_word"] == ["aaaaaaa", "rotator", *longer]
    assert len(scrambled_words("reversed_words", WORDS, count=2)) == 2


def test_draws_are_even():
    """Over seeds: each rotation, each order of the middle, each sign between letters is as likely as another."""
    draws = {
        task: [pairs(scrambled_words(task, ["planet"], seed=seed))[0][0] for seed in range(1000)] for task in TASKS
    }
    rotations = {"planet"[at:] + "planet"[:at] for at in range(1, 6)}
    orders = {f"p{''.join(middle)}t" for middle in permutations("lane")} - {"planet"}
    for task, possible in (("cycle_letters_in_word", rotations), ("mid_word_1_anagrams", orders)):
        counts = Counter(draws[task])
        assert counts.keys() == possible
        assert chisquare(list(counts.values())).pvalue > 1e-3
    signs = Counter("".join(scrambled[1::2] for scrambled in draws["random_insertion_in_word"]))
    assert signs.keys() == set(" ./!") and chisquare(list(signs.values())).pvalue > 1e-3
    assert set(draws["mid_word_2_anagrams"]) == {"plnaet"}
    assert set(draws["reversed_words"]) == {"tenalp"}


@pytest.mark.parametrize(
    ("task", "scrambled", "word"),
    [
        ("cycle_letters_in_word", "asinoc", "casinos"),
        ("cycle_letters_in_word", "asionc", "casino"),
        ("mid_word_1_anagrams", "tsicks", "sticks"),
        ("mid_word_1_anagrams", "stikks", "sticks"),
        ("mid_word_2_anagrams", "srticped", "scripted"),
        ("random_insertion_in_word", "d.o-g", "dog"),
        ("random_insertion_in_word", "d.o.g.", "dog"),
        ("random_insertion_in_word", "do.g", "dog"),
        ("reversed_words", "taefe", "defeat"),
    ],
)
def test_what_does_not_fit(task, scrambled, word):
    assert not TASKS[task].fits(scrambled, word)


def test_a_word_is_scrambled_the_same_among_others():
    alone = scrambled_words("mid_word_1_anagrams", ["gardens"], seed=4)
    assert alone[0] in scrambled_words("mid_word_1_anagrams", WORDS, seed=4)
    with pytest.raises(ConfigError, match="there is no word task anagrams; there are cycle_letters_in_word"):
        scrambled_words("anagrams", WORDS)
