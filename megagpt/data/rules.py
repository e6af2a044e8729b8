r"""Synthetic documents that follow a hidden rule: training data for learning in context, and its test.

A document is a list of examples of one rule, an input and its answer on each line: in "cQ\naT\ncQ\n" c has the label
Q, and a has T. The rule can only be inferred from the examples. Every document has another rule, of one of a few kinds.
Held-out rules use elements that no training document has, such as other pairs of letter and label or another modulus;
see each kind. All choices of a question about a held-out rule are equally likely before the first example, so a model
that sees no example is right by chance, whatever it has learned.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from string import digits
from typing import Any, ClassVar, Protocol, Self

from megagpt.errors import ConfigError

LETTERS, LABELS, SIGNS = "abcdefghijklmnopqrst", "ABCDEFGHIJKLMNOPQRST", "+-*/=<>!?"
"""The symbols of the texts, besides digits."""
CLASSES = 4
"""Number of classes of letters, labels and strings; see `_class_of`."""
EXAMPLES = 16
"""Number of examples in a document. A question has one fewer: the question itself is the last."""


@dataclass(frozen=True)
class Example:
    """One application of a rule."""

    input: str
    answer: str
    choices: tuple[str, ...]
    """Possible answers, sorted; the right one is among them."""

    @property
    def line(self) -> str:
        """The line of a document."""
        return f"{self.input}{self.answer}\n"


class Rule(Protocol):
    """The rule that all examples of a document follow."""

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """A random rule for training, or a held-out one."""

    def example(self, rng: random.Random) -> Example:
        """An example for a document. Some kinds have noise, so its answer may be wrong."""

    def question(self, rng: random.Random) -> Example:
        """An example whose answer is always right."""


class _Exact:
    """A rule whose examples are all right."""

    def question(self, rng: random.Random) -> Example:
        return self.example(rng)


@dataclass(frozen=True)
class _Pairs(_Exact):
    """A rule that is a list of inputs with their answers."""

    inputs: tuple[str, ...]
    answers: tuple[str, ...]

    def example(self, rng: random.Random) -> Example:
        """One of the pairs."""
        index = rng.randrange(len(self.inputs))
        return Example(self.inputs[index], self.answers[index], tuple(sorted(self.answers)))


class Mapping(_Pairs):
    """Each of a few letters has its own label: "cQ", "aT".

    Pairs of a letter and a label of the same class are held out: no training document has one. A held-out rule has
    letters and labels of one class.
    """

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """Two to six letters; a held-out rule has four."""
        if held_out:
            first = rng.randrange(CLASSES)
            return cls(_some(rng, LETTERS[first::CLASSES], 4), _some(rng, LABELS[first::CLASSES], 4))
        size = rng.randint(2, 6)
        while True:
            inputs, answers = _some(rng, LETTERS, size), _some(rng, LABELS, size)
            if not any(_class_of(one) == _class_of(other) for one, other in zip(inputs, answers, strict=True)):
                return cls(inputs, answers)


class Words(_Pairs):
    """A few words with different first letters: "cmgd", "sdpo". The first letter is the input, the rest the answer.

    Words whose first letter has the same class as the rest are held out.
    """

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """One to four words of three to five letters; a held-out rule has four of four letters."""
        if held_out:
            first = rng.randrange(CLASSES)
            rests: list[str] = []
            while len(rests) < 4:
                rest = _text(rng, 3)
                if _class_of(rest) == first and rest not in rests:
                    rests.append(rest)
            return cls(_some(rng, LETTERS[first::CLASSES], 4), tuple(rests))
        inputs = _some(rng, LETTERS, rng.randint(1, 4))
        answers = []
        for letter in inputs:
            rest = _text(rng, rng.randint(2, 4))
            while _class_of(rest) == _class_of(letter):
                rest = _text(rng, len(rest))
            answers.append(rest)
        return cls(inputs, tuple(answers))


@dataclass(frozen=True)
class Category(_Exact):
    """Characters of two types, and one label for each type: "4Q", "aT", "7Q".

    The rule also covers characters that no example shows. In training, no rule has both labels of a held-out rule.
    """

    types: tuple[str, ...]
    labels: str

    TYPES: ClassVar = (digits, LETTERS, SIGNS)

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """Two types and two labels."""
        return cls(tuple(rng.sample(cls.TYPES, 2)), _two_labels(rng, held_out))

    def example(self, rng: random.Random) -> Example:
        """A character and its type's label."""
        index = rng.randrange(2)
        return Example(rng.choice(self.types[index]), self.labels[index], tuple(sorted(self.labels)))


@dataclass(frozen=True)
class Majority:
    """The first label is more frequent than the other, for every letter: "aT", "kT", "aQ", "mT".

    In training, no rule has both labels of a held-out rule.
    """

    labels: str

    SHARE: ClassVar = 0.8

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """Two labels."""
        return cls(_two_labels(rng, held_out))

    def example(self, rng: random.Random) -> Example:
        """A letter and, four times in five, the frequent label."""
        return self._labelled(rng, self.labels[rng.random() >= self.SHARE])

    def question(self, rng: random.Random) -> Example:
        """A letter and the frequent label."""
        return self._labelled(rng, self.labels[0])

    def _labelled(self, rng: random.Random, label: str) -> Example:
        return Example(rng.choice(LETTERS), label, tuple(sorted(self.labels)))


@dataclass(frozen=True)
class Pattern(_Exact):
    """The answer takes letters of the input by position: (2, 0, 2) turns "abc" into "cac".

    Training never has the positions of HELD_OUT.
    """

    positions: tuple[int, ...]

    ALL: ClassVar = tuple((i, j, k) for i in range(3) for j in range(3) for k in range(3))
    HELD_OUT: ClassVar = ((0, 2, 1), (1, 0, 1), (2, 0, 0), (1, 2, 0), (2, 1, 2), (0, 1, 1))

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """An order of positions."""
        return cls(rng.choice(cls._orders(held_out)))

    @classmethod
    def _orders(cls, held_out: bool) -> list[tuple[int, ...]]:
        return [one for one in cls.ALL if (one in cls.HELD_OUT) == held_out]

    def example(self, rng: random.Random) -> Example:
        """Three different letters and their answer; the other choices are the answers by other positions."""
        text = _some(rng, LETTERS, 3)
        others = self._orders(self.positions in self.HELD_OUT)
        others.remove(self.positions)
        answers = ["".join(text[at] for at in order) for order in (self.positions, *rng.sample(others, 3))]
        return Example("".join(text), answers[0], tuple(sorted(answers)))


@dataclass(frozen=True)
class Remainder(_Exact):
    """The remainder of (digit + shift) by a modulus, "82", "93", for five of the digits.

    Training never has the moduli of HELD_OUT.
    """

    digits: tuple[str, ...]
    shift: int
    modulus: int

    MODULI: ClassVar = range(3, 11)
    HELD_OUT: ClassVar = (5, 8)

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """Digits, a shift and a modulus."""
        modulus = rng.choice([one for one in cls.MODULI if (one in cls.HELD_OUT) == held_out])
        return cls(_some(rng, digits, 5), rng.randrange(modulus), modulus)

    def example(self, rng: random.Random) -> Example:
        """A digit and its remainder; the choices are all remainders."""
        digit = rng.choice(self.digits)
        return Example(digit, str((int(digit) + self.shift) % self.modulus), tuple(map(str, range(self.modulus))))


class Cycle(_Pairs):
    """Four letters in a circle, each followed by the next: "cm", "ma", "at", "tc"."""

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """A circle; this kind is never trained on."""
        letters = _some(rng, LETTERS, 4)
        return cls(letters, letters[1:] + letters[:1])

    def example(self, rng: random.Random) -> Example:
        """A letter and the next; the choices are the three others."""
        found = super().example(rng)
        return replace(found, choices=tuple(one for one in found.choices if one != found.input))


class Phrases(_Pairs):
    """Each of four pairs of letters has a label: "cmQ", "aaT"."""

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> Self:
        """Pairs and labels; this kind is never trained on."""
        return cls(_some(rng, [one + other for one in LETTERS for other in LETTERS], 4), _some(rng, LABELS, 4))


KINDS: dict[str, type[Rule]] = {
    "words": Words,
    "mapping": Mapping,
    "category": Category,
    "majority": Majority,
    "pattern": Pattern,
    "remainder": Remainder,
}
"""Kinds with training documents."""
HELD_OUT_KINDS: dict[str, type[Rule]] = {"cycle": Cycle, "phrases": Phrases}
"""Kinds with questions only."""


def documents(
    count: int, seed: int, kinds: Sequence[str] | None = None, *, shuffled: bool = False
) -> Iterator[dict[str, str]]:
    """`count` training documents, {"text", "kind"}, of all kinds in turn.

    shuffled: redistribute the examples of each kind at random over its documents, so that a document has examples of
        many rules. The examples, their number per document, and the order of kinds stay the same.

    Raises ConfigError for a kind that is unknown or has no training documents.
    """
    rng = random.Random(f"documents {seed}")
    kinds = _known(kinds, KINDS)
    made = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        rule = KINDS[kind].draw(rng, held_out=False)
        made.append((kind, [rule.example(rng).line for _ in range(EXAMPLES)]))
    if shuffled:
        dealt = defaultdict(list)
        for kind, lines in made:
            dealt[kind] += lines
        for lines in dealt.values():
            rng.shuffle(lines)
        made = [(kind, [dealt[kind].pop() for _ in lines]) for kind, lines in made]
    for kind, lines in made:
        yield {"text": "".join(lines), "kind": kind}


def questions(count: int, seed: int, kinds: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """`count` questions about held-out rules, of all kinds in turn, each with EXAMPLES - 1 examples of its rule.

    A record is {"id", "kind", "input", "answer", "choices", "examples": [{"input", "answer", "choices"}]}; the first K
    examples are the demonstrations of a K-shot prompt.
    kinds: by default all of KINDS and HELD_OUT_KINDS

    Raises ConfigError for an unknown kind.
    """
    known = KINDS | HELD_OUT_KINDS
    kinds = _known(kinds, known)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        rng = random.Random(f"question {seed} {kind} {number // len(kinds)}")
        rule = known[kind].draw(rng, held_out=True)
        examples = [vars(rule.example(rng)) for _ in range(EXAMPLES - 1)]
        yield {"id": f"{kind}-{number // len(kinds)}", "kind": kind, **vars(rule.question(rng)), "examples": examples}


def _known(kinds: Sequence[str] | None, known: dict[str, type[Rule]]) -> list[str]:
    if unknown := [kind for kind in kinds or () if kind not in known]:
        raise ConfigError(f"there are no rules of kind {', '.join(unknown)} here: take {', '.join(known)}")
    return list(dict.fromkeys(kinds or known))


def _class_of(text: str) -> int:
    """The sum of the numbers of its letters or labels, modulo CLASSES."""
    return sum((LETTERS + LABELS).index(one) for one in text) % CLASSES


def _some(rng: random.Random, symbols: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` different symbols."""
    return tuple(rng.sample(symbols, count))


def _text(rng: random.Random, length: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(length))


def _two_labels(rng: random.Random, held_out: bool) -> str:
    """Two different labels; pairs of class 0 are held out."""
    while True:
        labels = "".join(_some(rng, LABELS, 2))
        if (_class_of(labels) == 0) == held_out:
            return labels
