"""Make a raw crawl with known junk, known copies, and known places of evaluation text and addresses."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from raw_crawl import CLEAN, JUNK, clean_pages, foreign_pages, junk, programs, records, spoilt

from megagpt.errors import ConfigError

EVALUATIONS = {"lambada/lambada_test.jsonl.gz": "text", "hellaswag/hellaswag_val_4k.jsonl.gz": "ctx"}
"""Files of --data whose text is planted, with the key of the text in their records."""
FOREIGN, EXACT, EVALUATION, ADDRESS = "foreign", "exact copy", "evaluation text", "address"
NEAR = {"near copy, 1 word in 100": 0.01, "near copy, 1 word in 30": 1 / 30}
"""Share of changed words in each kind of near copy."""
DROPPED = (*JUNK, FOREIGN)
"""Kinds of pages that should be dropped."""
COPIES = (EXACT, *NEAR)
"""Kinds of copies: of a copy and its original, one should be kept."""

HELD_OUT = 8
"""One of HELD_OUT clean pages is held out for measuring."""
CURATED = 4
"""One of CURATED clean pages goes to the curated set, which has no web pages."""
MIN_WORDS = 20
"""Smallest number of words of planted evaluation text. Text with fewer than 13 words cannot be found."""


class Raw(NamedTuple):
    """A page of the crawl."""

    kind: str
    """One of CLEAN, DROPPED or COPIES, or EVALUATION or ADDRESS for a clean page with planted text."""
    text: str
    origin: int | None = None
    """Index of a copy's original in the crawl."""
    planted: tuple[str, ...] = ()
    """Passages or addresses that were inserted."""


class Crawl(NamedTuple):
    """A crawl, and sets of clean pages that are not in it."""

    pages: list[Raw]
    """Pages of the crawl in a random order."""
    held_out: list[str]
    """Clean pages for measuring."""
    curated: list[str]
    """Clean pages that are mixed with the crawl later."""


def make_crawl(data: Path, mb: float, seed: int) -> Crawl:
    """A crawl with about `mb` megabytes of clean text before the rest is added. Raises ConfigError without the data."""
    rng = random.Random(seed)
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
        raise ConfigError(f"--mb {mb:g} makes {len(clean)} clean pages, but at least 50 are needed: raise it")
    rng.shuffle(clean)
    made = list(_plant(data, clean, rng))
    order = rng.sample(range(len(made)), len(made))
    place_of = {old: new for new, old in enumerate(order)}
    pages = [made[old] for old in order]
    pages = [page if page.origin is None else page._replace(origin=place_of[page.origin]) for page in pages]
    return Crawl(pages, held_out, curated)


def _plant(data: Path, clean: Sequence[tuple[str, str]], rng: random.Random) -> Iterator[Raw]:
    """The clean pages, a twentieth with evaluation text and a twentieth with addresses; then all other kinds."""
    part = max(2, len(clean) // 20)
    passages = iter(rng.sample(_passages(data), part))
    for place, (kind, text) in enumerate(clean):
        if place < part:
            passage = next(passages)
            yield Raw(EVALUATION, _inserted(text, passage, rng), planted=(passage,))
        elif place < 2 * part:
            addresses = tuple(_addresses(rng))
            for address in addresses:
                text = _inserted(text, f"Write to {address} for more.", rng)
            yield Raw(ADDRESS, text, planted=addresses)
        else:
            yield Raw(kind, text)
    texts = [text for _, text in clean]
    words = sorted({word for text in texts for word in text.split()})
    code = programs(data)
    for kind in JUNK:
        for _ in range(part):
            yield Raw(kind, junk(kind, rng, words, texts, code))
    for text in foreign_pages(data, 0.3 * sum(map(len, texts))):
        yield Raw(FOREIGN, text)
    origins = iter(rng.sample(range(2 * part, len(clean)), 2 * part * len(COPIES)))
    for kind in COPIES:
        for _ in range(2 * part):
            origin = next(origins)
            text = texts[origin]
            yield Raw(kind, spoilt(text, NEAR[kind], words, rng) if kind in NEAR else text, origin)


def _passages(data: Path) -> list[str]:
    """Texts of the evaluations with at least MIN_WORDS words."""
    texts = (" ".join(record[key].split()) for name, key in EVALUATIONS.items() for record in records(data, name))
    return sorted({text for text in texts if len(text.split()) >= MIN_WORDS})


def _addresses(rng: random.Random) -> Iterator[str]:
    """An e-mail address and a public IP address."""
    name = "".join(rng.choices("abcdefghijklmnoprstuvw", k=7))
    yield f"{name}.{rng.randint(10, 99)}@{rng.choice(('gmail', 'yahoo', 'hotmail', 'web'))}.com"
    yield f"{rng.choice((45, 66, 81, 93))}.{rng.randint(1, 254)}.{rng.randint(1, 254)}.{rng.randint(1, 254)}"


def _inserted(text: str, what: str, rng: random.Random) -> str:
    """`text` with a passage between two of its sentences, at a random place."""
    ends = [place + 1 for place in range(len(text) - 1) if text[place] in ".!?" and text[place + 1].isspace()]
    place = rng.choice(ends or [len(text)])
    return f"{text[:place]} {what}{text[place:]}"
