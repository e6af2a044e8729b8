"""A synthetic instruction set: prompts of a dozen kinds, right answers, and a function that scores any answer.

A record's "check" is the rule that scores an answer, from 0 to 1:

    {"exact": text}          1 for the text; else half the share of its words that are at their positions
    {"words": n}             1 for exactly n different words; else half of 1 - |difference| / n, at least 0
    {"begin": c, "words": n} 1 for n different words that begin with c; else half the share of such words
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megagpt.data.chat import Message
from megagpt.data.packed import Split, split_of
from megagpt.errors import ConfigError, DataError

_WORDS = (
    "apple bird cat dog egg fish goat hat ice jam king lamp moon nest owl pig queen rain sun tree van "
    "wolf box yard zoo ball cup door ear fire game hill ink job kite leaf milk nut oven park road ship "
    "toy wall"
)
WORDS = tuple(_WORDS.split())
NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo")
COLOURS = ("red", "blue", "green", "black", "white", "brown")
PROPORTIONS = (0.95, 0.05, 0.0)
"""Shares of prompts in train, validation and test."""

ATTEMPTS = 1000
"""Instructions of a kind in a row with prompts of other splits, after which it is given up."""

MOST_ANSWERS = 9
"""Largest number of answers in a ranking, as published (K = 4 to 9, arXiv 2203.02155)."""


@dataclass(frozen=True)
class Instruction:
    """A conversation whose last turn is a right answer, and the rule that scores other answers."""

    kind: str
    messages: tuple[Message, ...]
    check: dict[str, Any]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns but the answer."""
        return self.messages[:-1]


def check(rule: dict[str, Any], answer: str) -> float:
    """Score of an answer, 0 to 1; see the module. Raises ValueError for an unknown rule."""
    said = answer.split()
    if "exact" in rule:
        wanted = rule["exact"].split()
        if said == wanted:
            return 1.0
        return 0.5 * sum(a == b for a, b in zip(said, wanted, strict=False)) / max(len(said), len(wanted))
    if "words" not in rule:
        raise ValueError(f"{rule!r} does not say how answers are scored: it needs exact or words")
    count, different = rule["words"], set(said)
    if "begin" in rule:
        good = {word for word in different if word.startswith(rule["begin"])}
        return 1.0 if len(said) == len(good) == count else 0.5 * min(len(good), count) / max(len(said), count)
    return 1.0 if len(said) == len(different) == count else 0.5 * max(0.0, 1 - abs(len(different) - count) / count)


Made = tuple[str, str, dict[str, Any]]
"""The user's prompt, a right answer, and the check."""


def _exact(prompt: str, answer: str) -> Made:
    return prompt, answer, {"exact": answer}


def _some(rng: random.Random, least: int, most: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(least, most))


def repeat(rng: random.Random) -> Made:
    """A word several times."""
    word, count = rng.choice(WORDS), rng.randint(2, 4)
    phrase = rng.choice(("Say {0} {1} times.", "Repeat {0} {1} times.", "Write {0} {1} times."))
    return _exact(phrase.format(word, count), " ".join([word] * count))


def copy(rng: random.Random) -> Made:
    """Words as they are."""
    text = " ".join(_some(rng, 1, 3))
    return _exact(rng.choice(("Say: {}", "Repeat: {}", "Copy: {}")).format(text), text)


def reverse(rng: random.Random) -> Made:
    """Words the other way round."""
    words = _some(rng, 2, 4)
    phrase = rng.choice(("Reverse: {}", "Turn around: {}", "Backwards: {}"))
    return _exact(phrase.format(" ".join(words)), " ".join(words[::-1]))


def capitals(rng: random.Random) -> Made:
    """Words in capitals."""
    text = " ".join(_some(rng, 1, 2))
    return _exact(rng.choice(("In capitals: {}", "Shout: {}", "Upper case: {}")).format(text), text.upper())


def alphabetical(rng: random.Random) -> Made:
    """Words in alphabetical order."""
    words = _some(rng, 2, 4)
    return _exact(
        rng.choice(("Sort: {}", "In order: {}", "By alphabet: {}")).format(" ".join(words)), " ".join(sorted(words))
    )


def first(rng: random.Random) -> Made:
    """The first of some words."""
    words = _some(rng, 2, 4)
    return _exact(rng.choice(("First word: {}", "The first of {}?")).format(" ".join(words)), words[0])


def last(rng: random.Random) -> Made:
    """The last of some words."""
    words = _some(rng, 2, 4)
    return _exact(rng.choice(("Last word: {}", "The last of {}?")).format(" ".join(words)), words[-1])


def count(rng: random.Random) -> Made:
    """How many words there are."""
    words = _some(rng, 1, 5)
    return _exact(rng.choice(("How many words: {}", "Count: {}")).format(" ".join(words)), str(len(words)))


def add(rng: random.Random) -> Made:
    """A small sum."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return _exact(rng.choice(("{} + {} =", "Add {} and {}.", "What is {} plus {}?")).format(a, b), str(a + b))


def larger(rng: random.Random) -> Made:
    """The larger of two numbers."""
    a, b = rng.sample(range(30), 2)
    return _exact(rng.choice(("Which is larger, {} or {}?", "The larger of {} and {}:")).format(a, b), str(max(a, b)))


def recall(rng: random.Random) -> Made:
    """A fact that the prompt states."""
    (name, other), (colour, another) = rng.sample(NAMES, 2), rng.sample(COLOURS, 2)
    thing = rng.choice(WORDS)
    story = [f"{name} has a {colour} {thing}.", f"{other} has a {another} {thing}."]
    return _exact(f"{' '.join(rng.sample(story, 2))} Whose is {colour}?", name)


def some_words(rng: random.Random) -> Made:
    """A given number of any words."""
    number = rng.randint(2, 5)
    phrase = rng.choice(("Say any {} words.", "Give me {} different words.", "Write {} words."))
    return phrase.format(number), " ".join(rng.sample(WORDS, number)), {"words": number}


def beginning(rng: random.Random) -> Made:
    """Words that begin with a letter."""
    letter = rng.choice([c for c in "bcdefghijklmnoprtw" if sum(word.startswith(c) for word in WORDS) > 1])
    fitting = [word for word in WORDS if word.startswith(letter)]
    number = rng.randint(1, min(2, len(fitting)))
    text = f"Say {number} word{'s' * (number > 1)} with {letter}."
    return text, " ".join(rng.sample(fitting, number)), {"begin": letter, "words": number}


KINDS: dict[str, Callable[[random.Random], Made]] = {
    function.__name__: function
    for function in (
        repeat,
        copy,
        reverse,
        capitals,
        alphabetical,
        first,
        last,
        count,
        add,
        larger,
        recall,
        some_words,
        beginning,
    )
}
"""Kinds with one user's turn, by name."""

TURNS: tuple[str, ...] = ("follow_up", "system")
"""Kinds with more turns: a second request about the first answer, and a system prompt about the form of answers."""


def make_instructions(
    number: int, *, kinds: Sequence[str] = (*KINDS, *TURNS), seed: int = 0, split: Split | None = None
) -> Iterator[Instruction]:
    """`number` instructions with equal shares of all kinds. The same arguments give the same instructions.

    `split`: only prompts that a hash puts into train, or into validation (one in twenty), so that the two have none in
    common. Raises ConfigError for an unknown kind, DataError for one that has no prompt of the split.
    """
    unknown = sorted(set(kinds) - {*KINDS, *TURNS})
    if unknown or not kinds:
        raise ConfigError(f"kinds {', '.join(unknown) or '(none)'}: they are {', '.join((*KINDS, *TURNS))}")
    rng = random.Random(seed)
    for index in range(number):
        yield _draw(kinds[index % len(kinds)], rng, split)


def _draw(kind: str, rng: random.Random, split: Split | None) -> Instruction:
    """An instruction of a kind whose prompt is of the split."""
    for _ in range(ATTEMPTS):
        messages, rule = _TURNS[kind](rng) if kind in TURNS else _single(KINDS[kind](rng))
        instruction = Instruction(kind, messages, rule)
        asked = "\n".join(f"{message.role}: {message.content}" for message in instruction.prompt)
        if split is None or split_of(asked, PROPORTIONS) == split:
            return instruction
    raise DataError(f"kind {kind} has too few prompts to have one in the split {split}: leave the kind out")


def _single(made: Made) -> tuple[tuple[Message, ...], dict[str, Any]]:
    prompt, answer, rule = made
    return (Message("user", prompt), Message("assistant", answer)), rule


def _follow_up(rng: random.Random) -> tuple[tuple[Message, ...], dict[str, Any]]:
    (asked, said), _ = _single(rng.choice((repeat, copy, reverse, alphabetical, first, last))(rng))
    request, answer = rng.choice(
        (
            ("Now in capitals.", said.content.upper()),
            ("Now backwards.", " ".join(said.content.split()[::-1])),
            ("Again.", said.content),
        )
    )
    return (asked, said, Message("user", request), Message("assistant", answer)), {"exact": answer}


def _system(rng: random.Random) -> tuple[tuple[Message, ...], dict[str, Any]]:
    (asked, said), _ = _single(rng.choice((repeat, copy, first, last, add, larger))(rng))
    rule, answer = rng.choice(
        (
            ("Answer in capitals.", said.content.upper()),
            ("Say please first.", f"please {said.content}"),
            ("End with ok.", f"{said.content} ok"),
        )
    )
    return (Message("system", rule), asked, Message("assistant", answer)), {"exact": answer}


_TURNS = {"follow_up": _follow_up, "system": _system}


def ranked_answers(instruction: Instruction, rng: random.Random) -> list[tuple[str, int]]:
    """2 to MOST_ANSWERS different answers with their ranks by `check`, 0 for the best; equal scores are ties.

    One of them is the right answer. The others have wrong words, are longer or shorter, or have other words entirely.
    """
    right = instruction.messages[-1].content
    words = right.split()
    made, wanted = {right}, rng.randint(2, MOST_ANSWERS)
    while len(made) < wanted:
        made.add(" ".join(_spoiled(words, rng)))
    answers = sorted(made)
    rng.shuffle(answers)
    scores = [check(instruction.check, answer) for answer in answers]
    order = sorted(set(scores), reverse=True)
    return [(answer, order.index(score)) for answer, score in zip(answers, scores, strict=True)]


def _spoiled(words: list[str], rng: random.Random) -> list[str]:
    """Words of an answer that is probably wrong."""
    at = rng.randrange(len(words))
    return rng.choice(
        (
            [*words[:at], rng.choice(WORDS), *words[at + 1 :]],
            words[:at] if at else [*words, *words],
            words[at + 1 :] or rng.sample(WORDS, 2),
            [*words, rng.choice(WORDS)],
            rng.sample(words, len(words)),
            rng.sample(WORDS, max(1, len(words) + rng.randint(-1, 1))),
            [word.upper() for word in words],
        )
    )
