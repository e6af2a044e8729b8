"""Generates GPT-3's five word tasks (arXiv 2005.14165, section 3.9.2) in the format of OpenAI's files.

    cycle_letters_in_word      CL  the letters are rotated                               asinoc = casino
    mid_word_1_anagrams        A1  all but the first and the last letter are shuffled    skicts = sticks
    mid_word_2_anagrams        A2  all but the first two and the last two are shuffled   unsovreled = unresolved
    random_insertion_in_word   RI  one of " ", ".", "/", "!" between adjacent letters    d.o m i!n a n.t = dominant
    reversed_words             RW  the letters are reversed                              taefed = defeat

The paper used the 10,000 most frequent words of certain lengths. Words in OpenAI's files have 6 to 15 letters, for A1
5 to 15.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from megagpt.errors import ConfigError

INSTRUCTION = "Please unscramble the letters into a word, and write that word:"
"""First line of the prompt of every word task (figures G.19 to G.27); it is not in OpenAI's files."""
INSTANCES = 10_000
"""Number of words in each of OpenAI's files."""
LONGEST = 15
"""Largest number of letters in a word."""
INSERTED = " ./!"


@dataclass(frozen=True)
class WordTask:
    """Scrambles words, and checks whether a text is a scrambled word."""

    scramble: Callable[[str, random.Random], str]
    fits: Callable[[str, str], bool]
    """(scrambled, word): whether `scramble` could turn the word into `scrambled`."""
    shortest: int = 6
    """Smallest number of letters in a word."""


def scrambled_words(task: str, words: Iterable[str], count: int = INSTANCES, seed: int = 0) -> list[dict[str, str]]:
    """The first `count` words that the task can scramble: {"context": "\\nasinoc =", "completion": " casino"}.

    A word must consist of 6 (A1: 5) to 15 letters, and its scrambled form must differ from it. Words are lower-cased
    and do not repeat. A word's scrambled form depends only on task, word and seed. task: the name of one of OpenAI's
    files. Raises ConfigError for an unknown task.
    """
    if task not in TASKS:
        raise ConfigError(f"there is no word task {task}; there are {', '.join(TASKS)}")
    how = TASKS[task]
    made: dict[str, str] = {}
    for word in map(str.lower, words):
        if word not in made and word.isalpha() and how.shortest <= len(word) <= LONGEST:
            scrambled = _scrambled(how, word, random.Random(f"{task} {seed} {word}"))
            if scrambled is not None:
                made[word] = scrambled
        if len(made) == count:
            break
    return [{"context": f"\n{scrambled} =", "completion": f" {word}"} for word, scrambled in made.items()]


def _scrambled(how: WordTask, word: str, rng: random.Random) -> str | None:
    """A scrambled form that differs from the word; None if there is none, as for "level" reversed."""
    tries = (how.scramble(word, rng) for _ in range(100))
    return next((scrambled for scrambled in tries if scrambled != word), None)


def _rotate(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word))
    return word[at:] + word[:at]


def _is_rotated(scrambled: str, word: str) -> bool:
    return len(scrambled) == len(word) and scrambled in word + word


def _shuffle(kept: int) -> Callable[[str, random.Random], str]:
    def scramble(word: str, rng: random.Random) -> str:
        middle = list(word[kept:-kept])
        rng.shuffle(middle)
        return word[:kept] + "".join(middle) + word[-kept:]

    return scramble


def _is_shuffled(kept: int) -> Callable[[str, str], bool]:
    def fits(scrambled: str, word: str) -> bool:
        ends = scrambled[:kept] == word[:kept] and scrambled[-kept:] == word[-kept:]
        return ends and sorted(scrambled) == sorted(word)

    return fits


def _insert(word: str, rng: random.Random) -> str:
    return "".join(letter + rng.choice(INSERTED) for letter in word[:-1]) + word[-1]


def _is_inserted(scrambled: str, word: str) -> bool:
    return scrambled[::2] == word and set(scrambled[1::2]) <= set(INSERTED) and len(scrambled) == 2 * len(word) - 1


TASKS = {
    "cycle_letters_in_word": WordTask(_rotate, _is_rotated),
    "mid_word_1_anagrams": WordTask(_shuffle(1), _is_shuffled(1), shortest=5),
    "mid_word_2_anagrams": WordTask(_shuffle(2), _is_shuffled(2)),
    "random_insertion_in_word": WordTask(_insert, _is_inserted),
    "reversed_words": WordTask(lambda word, _: word[::-1], lambda scrambled, word: scrambled[::-1] == word),
}
"""Word tasks by the name of OpenAI's file."""
