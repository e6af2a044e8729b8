"""datatrove's blocks beside ours: the same words, the same texts. And the texts: real ones, and junk of many kinds."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.word_tokenizers import WordTokenizer

from megagpt.data.corpus.text.analysis import Analysis, split_sentences


class Words(WordTokenizer):
    """Our words and sentences, for datatrove's blocks."""

    def word_tokenize(self, text: str) -> list[str]:
        return Analysis(text).words

    def sent_tokenize(self, text: str) -> list[str]:
        return split_sentences(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends, end = [], 0
        for sentence in split_sentences(text):
            ends.append((end, end := end + len(sentence)))
        return ends


WORDS = Words()


def verdict(block: BaseFilter, text: str, **metadata: str) -> tuple[str | None, str]:
    """Why datatrove's block drops a text, None where it does not; and the text it leaves."""
    document = Document(text=text, id="", metadata=metadata)
    result = block.filter(document)
    return (None if result is True else result[1]), document.text


def real_texts(data_dir: Path) -> Iterator[str]:
    """Web pages, articles, speeches, pieces of novels, and sentences in sixteen languages, joined to pages."""
    for name in (
        "wiki_c4_demo/c4_demo",
        "wiki_c4_demo/wiki_demo",
        "us_speeches/inaugural",
        "english_novels/novels_en",
        "novels_de_fr_ja/novels_de_fr_ja",
        "chinese_classics/poetry_zh",
    ):
        for number, record in enumerate(_records(data_dir / f"{name}.jsonl.gz")):
            if number < 300:
                yield record["text"] if "novels" not in name else record["text"][5000:25_000]
    flores = list(_records(data_dir / "flores200/flores200_dev.jsonl.gz"))
    for first in range(0, 200, 10):
        for language in flores[0].keys() - {"id"}:
            yield "\n".join(record[language] for record in flores[first : first + 10])


def _records(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


COMMON = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "he",
    "is",
    "with",
    "for",
    "on",
    "as",
    "his",
    "at",
    "by",
    "have",
    "be",
    "from",
    "this",
    "not",
    "but",
    "which",
]
LONG = ["government", "international", "understanding", "responsibility", "characteristics", "environment"]
ODD = [
    "#",
    "...",
    "…",
    "-",
    "•",
    "!!!",
    "{",
    "}",
    "—",
    "１",
    "ⓐ",
    "²",
    "Ⅷ",
    "3.5",
    "x_y",
    "_",
    "\x7f",
    "\u200b",
    "𝒳",
    "é",
]
LINES = [
    "lorem ipsum dolor sit amet.",
    "Please enable JavaScript in your browser.",
    "We use cookies. Read our privacy policy here.",
    "function f() { return 1; }",
    "Paris[12] is the capital[citation needed] of France.[edit]",
    "java[1]script makes a word here.",
    "[1]",
    "a" * 1001 + " is long.",
    "Read more...",
    "He left....",
    "One. Two. Three. Four. Five.",
    'They said "no"',
    "This is 'quoted'",
    "- a point of the list",
    "   • another point",
    "",
    "   ",
]
BREAKS = ["\n", "\n", "\n", "\n\n", "\n\n\n", "\r\n", "\x0b", "\x85", "\u2028", "\n \n"]


def junk(count: int, seed: int = 0) -> Iterator[str]:
    """Texts near the limits of every rule: few words that repeat, odd words, odd lines, repeated lines."""
    dice = random.Random(seed)
    for _ in range(count):
        vocabulary = _vocabulary(dice)
        marks = dice.choice([["."], [".", ""], ["...", "."], ["", "", "", "."], ["。"], ["!", "?", '"', "'", "…"]])
        lines = []
        for _ in range(dice.choice([1, 3, 10, 30])):
            choice = dice.random()
            if choice < 0.1:
                lines.append(dice.choice(LINES))
            elif choice < 0.25 and lines:
                lines.append(dice.choice(lines))
            else:
                words = dice.choices(vocabulary, k=dice.choice([1, 2, 3, 5, 10, 20, 40]))
                lines.append(dice.choice(["", "", "", " ", "- "]) + " ".join(words) + dice.choice(marks))
        breaks = dice.choice([["\n"], BREAKS])
        yield "".join(part for line in lines for part in (line, dice.choice(breaks)))[: dice.choice([None, -1, 50])]


def _vocabulary(dice: random.Random) -> list[str]:
    size = dice.choice([1, 2, 3, 5, 20, 200, 2000])
    kind = dice.randrange(6)
    if kind == 0:  # written together many of these are the same
        return ["a" * (1 + number % 3) for number in range(size)]
    if kind == 1:
        return [chr(0x4E00 + number) * 5 for number in range(size)]
    letters = "etaoin" if kind == 2 else "etaoinshrdlucmfwypvbgkjqxz"
    made = ["".join(dice.choices(letters, k=dice.choice([1, 2, 4, 6, 9, 14]))) for _ in range(size)]
    return made + dice.choice([[], COMMON, COMMON + LONG, ODD, COMMON + ODD, ODD * 10])
