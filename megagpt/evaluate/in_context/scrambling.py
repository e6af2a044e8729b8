"""GPT-3's five word tasks, made by program (arXiv 2005.14165, section 3.9.2), in the form of OpenAI's files.

    cycle_letters_in_word      CL  the letters are rotated                               asinoc = casino
    mid_word_1_anagrams        A1  all but the first and the last letter are shuffled    skicts = sticks
    mid_word_2_anagrams        A2  all but the first two and the last two are shuffled   unsovreled = unresolved
    random_insertion_in_word   RI  one of " ", ".", "/", "!" stands between the letters  d.o m i!n a n.t = dominant
    reversed_words             RW  the letters stand in reverse                          taefed = defeat

The paper took the 10,000 most frequent words of a length; those in OpenAI's files have 6 to 15 letters, in A1 5 to 15.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from megagpt.errors import ConfigError

INSTRUCTION = "Please unscramble the letters into a word, and write that word:"
"""The first line of the prompt of every word task (figures G.19 to G.27); it is not in OpenAI's files."""
INSTANCES = 10_000
"""In each of the published files."""
LONGEST = 15
"""Letters of a word."""
INSERTED = " ./!"


@dataclass(frozen=True)
class WordTask:
    """How a task scrambles a word, and whether something is a word scrambled so."""

    scramble: Callable[[str, random.Random], str]
    fits: Callable[[str, str], bool]
    """Of (scrambled, word): whether the word is an answer, however the draw came out."""
    shortest: int = 6
    """Letters of a word."""


def scrambled_words(task: str, words: Iterable[str], count: int = INSTANCES, seed: int = 0) -> list[dict[str, str]]:
    """The first `count` words that the task can scramble: {"context": "\\nasinoc =", "completion": " casino"}.

    A word fits that has only letters, 6 (A1: 5) to 15 of them, and whose scrambled form differs from it. Words come in
    lower case, each once. `task` is the name of one of OpenAI's files; raises ConfigError for another. What a word
    becomes depends on task, word and seed alone.
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
    """None for a word such as "level" reversed, or with the same letters all along its middle."""
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
"""By the name of OpenAI's file."""
