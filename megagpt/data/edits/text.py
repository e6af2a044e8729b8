"""Edits of prose. Each raises NotApplicableError if it has nothing to change."""

import random
import re
from collections.abc import Callable

from megagpt.data.edits.edit import Edit, NotApplicableError, pick

_WORD = re.compile(r"[A-Za-z]+")
_LONG_WORD = re.compile(r"[A-Za-z]{4,}")
_NEIGHBOURS = dict(zip("abcdefghijklmnopqrstuvwxyz", "snxfrdghokjlkbipwtdyivqzux", strict=True))
"""A key next to each letter on the keyboard."""


def spelling(text: str, rng: random.Random) -> Edit:
    """Correct misspelt words."""
    words = list(_LONG_WORD.finditer(text))
    count = min(len(words), 1 + rng.randrange(3))
    if not count:
        raise NotApplicableError
    broken = text
    for match in sorted(rng.sample(words, count), key=lambda match: -match.start()):
        broken = broken[: match.start()] + misspell(match[0], rng) + broken[match.end() :]
    asked = ("Fix the spelling.", "Correct the spelling mistakes.", "Repair the typos.")
    return Edit("spelling", pick(rng, list(asked)), broken, text)


def misspell(word: str, rng: random.Random) -> str:
    """`word`, of at least 4 letters, with a typing error."""
    while True:
        at = 1 + rng.randrange(len(word) - 2)  # first letters are seldom mistyped
        a, b = word[at], word[at + 1]
        typo = pick(
            rng,
            [
                word[:at] + b + a + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + a + word[at:],
                word[:at] + _NEIGHBOURS.get(a, "e") + word[at + 1 :],
            ],
        )
        if typo != word:
            return typo


def uppercase(text: str, rng: random.Random) -> Edit:
    """Write all letters as capitals."""
    asked = ["Write it in capitals.", "Make everything uppercase.", "Convert to upper case."]
    return Edit("uppercase", pick(rng, asked), text, text.upper())


def lowercase(text: str, rng: random.Random) -> Edit:
    """Write all letters as small letters."""
    asked = ["Write it in small letters.", "Make everything lowercase.", "Convert to lower case."]
    return Edit("lowercase", pick(rng, asked), text, text.lower())


def sentence_case(text: str, rng: random.Random) -> Edit:
    """Begin each sentence with a capital letter."""
    small = text.lower()
    large = re.sub(r"(^|[.!?]\s+)([a-z])", lambda match: match[1] + match[2].upper(), small)
    asked = ["Begin every sentence with a capital letter.", "Capitalise the first letter of each sentence."]
    return Edit("sentence_case", pick(rng, asked), small, large)


def replace_word(text: str, rng: random.Random) -> Edit:
    """Replace a word by another one everywhere."""
    words = sorted(set(_LONG_WORD.findall(text)))
    old = pick(rng, words)
    new = pick(rng, [word for word in words if word.lower() != old.lower()])
    asked = [f"Replace {old} with {new}.", f"Change {old} to {new}.", f"Write {new} instead of {old}."]
    return Edit("replace_word", pick(rng, asked), text, re.sub(rf"\b{old}\b", new, text))


def remove_word(text: str, rng: random.Random) -> Edit:
    """Remove every occurrence of a word, with one space."""
    old = pick(rng, sorted(set(_LONG_WORD.findall(text))))
    asked = [f"Remove the word {old}.", f"Delete {old}.", f"Take out {old}."]
    return Edit("remove_word", pick(rng, asked), text, re.sub(rf"(?<!\S){old}(?!\S) ?", "", text).rstrip(" "))


def sort_lines(text: str, rng: random.Random) -> Edit:
    """Sort a list of words, one per line, alphabetically."""
    lines = _list(text, rng)
    asked = ["Sort the lines.", "Put the lines in alphabetical order.", "Order the list alphabetically."]
    return Edit("sort_lines", pick(rng, asked), "\n".join(lines), "\n".join(sorted(lines)))


def reverse_lines(text: str, rng: random.Random) -> Edit:
    """Reverse a list of words."""
    lines = _list(text, rng)
    asked = ["Reverse the order of the lines.", "Turn the list around.", "List the lines from last to first."]
    return Edit("reverse_lines", pick(rng, asked), "\n".join(lines), "\n".join(reversed(lines)))


def number_lines(text: str, rng: random.Random) -> Edit:
    """Number a list of words."""
    lines = _list(text, rng)
    asked = ["Number the lines.", "Make it a numbered list.", "Put a number before every line."]
    numbered = [f"{number}. {line}" for number, line in enumerate(lines, 1)]
    return Edit("number_lines", pick(rng, asked), "\n".join(lines), "\n".join(numbered))


def single_spaces(text: str, rng: random.Random) -> Edit:
    """Remove superfluous spaces."""
    clean = re.sub(r" +", " ", text).strip()
    wide = re.sub(r" ", lambda _: " " * (1 + (rng.random() < 0.4) * (1 + rng.randrange(2))), clean)
    asked = ["Remove the extra spaces.", "Leave one space between words.", "Clean up the spacing."]
    return Edit("single_spaces", pick(rng, asked), wide, clean)


def _list(text: str, rng: random.Random) -> list[str]:
    words = list(dict.fromkeys(word.lower() for word in _LONG_WORD.findall(text)))
    if len(words) < 3:
        raise NotApplicableError
    return rng.sample(words, min(len(words), 3 + rng.randrange(4)))


TEXT_KINDS: dict[str, Callable[[str, random.Random], Edit]] = {
    function.__name__: function
    for function in (
        spelling,
        uppercase,
        lowercase,
        sentence_case,
        replace_word,
        remove_word,
        sort_lines,
        reverse_lines,
        number_lines,
        single_spaces,
    )
}
"""Edits of prose by name."""


def passages(text: str, max_chars: int) -> list[str]:
    """Pieces of prose of at most `max_chars` characters: consecutive whole sentences, without line breaks."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        piece = ""
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            if piece and len(piece) + 1 + len(sentence) > max_chars:
                found.append(piece)
                piece = ""
            piece = f"{piece} {sentence}".strip() if len(sentence) <= max_chars else ""
        found.append(piece)
    return [piece for piece in found if len(_WORD.findall(piece)) >= 3]
