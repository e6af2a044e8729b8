"""A raw crawl in which it is known what is junk, what is a copy of what, and where evaluations and addresses are."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from raw_crawl import CLEAN, JUNK, clean_pages, foreign_pages, junk, programs, records, spoilt

from megagpt.errors import ConfigError

EVALUATIONS = {"lambada/lambada_test.jsonl.gz": "text", "hellaswag/hellaswag_val_4k.jsonl.gz": "ctx"}
"""Files of --data whose text is planted, and by which key of their records it is."""
FOREIGN, EXACT, EVALUATION, ADDRESS = "foreign", "exact copy", "evaluation text", "address"
NEAR = {"near copy, 1 word in 100": 0.01, "near copy, 1 word in 30": 1 / 30}
"""Share of the words of a copy that differ."""
DROPPED = (*JUNK, FOREIGN)
"""Kinds of pages that should not stay."""
COPIES = (EXACT, *NEAR)
"""Kinds of pages of which one of two should stay."""

HELD_OUT = 8
"""One clean page of so many is kept for measuring."""
CURATED = 4
"""One of so many is kept for the curated set, from other sources than the crawl's web pages."""
MIN_WORDS = 20
"""Of an evaluation's text that is planted: fewer than a run of 13 cannot be found."""


class Raw(NamedTuple):
    """A page of the crawl."""

    kind: str
    """What it was made as: of CLEAN, DROPPED, COPIES, or a clean page with EVALUATION or ADDRESS in it."""
    text: str
    origin: int | None = None
    """Of a copy: the place of its original in the crawl."""
    planted: tuple[str, ...] = ()
    """Passages or addresses that were put into it."""


class Crawl(NamedTuple):
    """What is made of --data."""

    pages: list[Raw]
    """In a random order."""
    held_out: list[str]
    """Clean pages that are nowhere else."""
    curated: list[str]
    """Clean pages that are not in the crawl: the set that is mixed with it."""


def make_crawl(data: Path, mb: float, seed: int) -> Crawl:
    """A crawl with about `mb` megabytes of clean text before the rest is added. Raises ConfigError without the data."""
    dice = random.Random(seed)
    clean: list[tuple[str, str]] = []
    held_out, curated = [], []
    for kind in CLEAN:
        for place, text in enumerate(clean_pages(data, kind, mb * 1e6 / len(CLEAN))):
            if place % HELD_OUT == 0:
                held_out.append(text)
            elif kind != "web" and place % CURATED == 1:
                curated.append(text)
            else:
                clean.append((kind, text))
    if len(clean) < 50:
        raise ConfigError(f"--mb {mb:g} makes {len(clean)} clean pages, and 50 are the least: raise it")
    dice.shuffle(clean)
    made = list(_plant(data, clean, dice))
    order = dice.sample(range(len(made)), len(made))
    place_of = {old: new for new, old in enumerate(order)}
    pages = [made[old] for old in order]
    pages = [page if page.origin is None else page._replace(origin=place_of[page.origin]) for page in pages]
    return Crawl(pages, held_out, curated)


def _plant(data: Path, clean: Sequence[tuple[str, str]], dice: random.Random) -> Iterator[Raw]:
    """The clean pages, of which a twentieth each has evaluation text or addresses in it; then the rest."""
    part = max(2, len(clean) // 20)
    passages = iter(dice.sample(_passages(data), part))
    for place, (kind, text) in enumerate(clean):
        if place < part:
            passage = next(passages)
            yield Raw(EVALUATION, _inserted(text, passage, dice), planted=(passage,))
        elif place < 2 * part:
            addresses = tuple(_addresses(dice))
            for address in addresses:
                text = _inserted(text, f"Write to {address} for more.", dice)
            yield Raw(ADDRESS, text, planted=addresses)
        else:
            yield Raw(kind, text)
    texts = [text for _, text in clean]
    words = sorted({word for text in texts for word in text.split()})
    code = programs(data)
    for kind in JUNK:
        for _ in range(part):
            yield Raw(kind, junk(kind, dice, words, texts, code))
    for text in foreign_pages(data, 0.3 * sum(map(len, texts))):
        yield Raw(FOREIGN, text)
    origins = iter(dice.sample(range(2 * part, len(clean)), 2 * part * len(COPIES)))
    for kind in COPIES:
        for _ in range(2 * part):
            origin = next(origins)
            text = texts[origin]
            yield Raw(kind, spoilt(text, NEAR[kind], words, dice) if kind in NEAR else text, origin)


def _passages(data: Path) -> list[str]:
    """Texts of the evaluations that are long enough."""
    texts = (" ".join(record[key].split()) for name, key in EVALUATIONS.items() for record in records(data, name))
    return sorted({text for text in texts if len(text.split()) >= MIN_WORDS})


def _addresses(dice: random.Random) -> Iterator[str]:
    """An e-mail address and a public IP address."""
    name = "".join(dice.choices("abcdefghijklmnoprstuvw", k=7))
    yield f"{name}.{dice.randint(10, 99)}@{dice.choice(('gmail', 'yahoo', 'hotmail', 'web'))}.com"
    yield f"{dice.choice((45, 66, 81, 93))}.{dice.randint(1, 254)}.{dice.randint(1, 254)}.{dice.randint(1, 254)}"


def _inserted(text: str, what: str, dice: random.Random) -> str:
    """`text` with a passage between two of its sentences, at a place drawn."""
    ends = [place + 1 for place in range(len(text) - 1) if text[place] in ".!?" and text[place + 1].isspace()]
    place = dice.choice(ends or [len(text)])
    return f"{text[:place]} {what}{text[place:]}"
