"""Make pages of a crawl from data sets, junk of known kinds, and WET files.

`bench_corpus` times the steps of a corpus on them; `prove_corpus` counts how much planted junk the steps find.
"""

import gzip
import json
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from megagpt.errors import ConfigError

CLEAN = {
    "web": "wiki_c4_demo/c4_demo.jsonl.gz",
    "encyclopaedia": "wiki_c4_demo/wiki_demo.jsonl.gz",
    "novels": "english_novels/novels_en.jsonl.gz",
    "speeches": "us_speeches/state_union.jsonl.gz",
}
"""Files of --data with English text, by the kind of pages made from them."""
FOREIGN = {"novels_de_fr_ja/novels_de_fr_ja.jsonl.gz": None, "chinese_classics/novels_zh.jsonl.gz": "zh"}
"""Files of text in other languages; None: each record names its own."""
SHARES = {"de": 0.4, "fr": 0.4, "ja": 0.1, "zh": 0.1}
"""Shares of the bytes of foreign pages. As in a crawl, most are in languages with spaces between words."""
CODE = "humaneval/HumanEval.jsonl.gz"

PAGE = 4000
"""Approximate number of characters of a page that is cut out of a longer text."""
_MENU = """
    Home|About us|Products|Contact|My account|Log in|Register|Sitemap|Share on Facebook|Tweet|Newsletter|Cart (0)|
    Next page|Previous page|Terms of use|Privacy policy|FAQ|Help|Search|Categories|Archive|Leave a comment|RSS|
    Back to top|Print|Follow us|Subscribe|Read more...|3 likes|12 comments|Sign in|Wishlist|Careers|Press"""
_COOKIES = (
    "This site uses cookies to give you the best experience; by going on you accept our cookie policy.",
    "Please enable JavaScript in your browser to see this page as it is meant to be seen by you.",
    "All trademarks and all rights reserved, see our terms of use and our privacy policy for the rest.",
)
_GOODS = (
    "cheap flights",
    "hotel deals",
    "best casino",
    "car insurance",
    "weight loss",
    "payday loans",
    "replica watches",
)


def records(data: Path, name: str) -> Iterator[dict[str, Any]]:
    """The records of a file of --data. Raises ConfigError if there is no such file."""
    path = data / name
    if not path.is_file():
        raise ConfigError(f"--data {data} has no {name}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def clean_pages(data: Path, kind: str, most: float) -> list[str]:
    """About `most` bytes of pages of a kind in CLEAN, taken evenly from all its records."""
    texts = [unwrapped(record["text"]) for record in records(data, CLEAN[kind])]
    return _until(most, (text.strip() for text in texts) if kind == "web" else _in_turns([*map(cut, texts)]))


def unwrapped(text: str) -> str:
    """The text with each paragraph on one line; files of books break lines at a fixed width.

    A paragraph ends at an empty line, or at the end of a sentence in a line that is much shorter than usual.
    """
    lines = [line.strip() for line in text.splitlines()]
    usual = statistics.median([len(line) for line in lines if line] or [0])
    if len(lines) < 50 or usual > 90:
        return text
    parts: list[list[str]] = [[]]
    for line in lines:
        parts[-1] += [line] if line else []
        if parts[-1] and (not line or (len(line) < 0.75 * usual and line.endswith((".", "!", "?", '"', "'")))):
            parts.append([])
    return "\n\n".join(" ".join(part) for part in parts if part)


def foreign_pages(data: Path, most: float) -> list[str]:
    """About `most` bytes of pages in the languages of SHARES, in turns."""
    texts: dict[str, list[str]] = {}
    for name, language in FOREIGN.items():
        for record in records(data, name):
            texts.setdefault(language or record["lang"], []).append(record["text"])
    return list(_in_turns([_until(share * most, cut("\n".join(texts[name]))) for name, share in SHARES.items()]))


def _in_turns(lists: Sequence[list[str]]) -> Iterator[str]:
    for place in range(max(map(len, lists))):
        yield from (items[place] for items in lists if place < len(items))


def _until(most: float, texts: Iterable[str]) -> list[str]:
    kept, size = [], 0
    for text in texts:
        if size >= most:
            break
        kept.append(text)
        size += len(text.encode())
    return kept


def cut(text: str, size: int = PAGE) -> list[str]:
    """A text in pages of about `size` characters, cut at the ends of paragraphs if possible."""
    pages, start = [], 0
    while start < len(text):
        end = start + size
        for mark in ("\n\n", "\n", ". ", " "):
            if end < len(text) and (found := text.rfind(mark, start + size // 2, end)) > 0:
                end = found + len(mark.rstrip())
                break
        if page := text[start:end].strip():
            pages.append(page)
        start = end
    return pages


def junk(kind: str, rng: random.Random, words: Sequence[str], pages: Sequence[str], code: Sequence[str]) -> str:
    """A page of junk.

    words: words of the language
    pages: good pages, for repeated lines
    code: programs
    """
    match kind:
        case "boilerplate":
            entries = [entry.strip() for entry in _MENU.split("|")]
            lines = rng.choices(entries, k=rng.randint(40, 80))
            return "\n".join([*lines[:30], *rng.sample(_COOKIES, 2), *lines[30:]])
        case "keyword spam":
            return "\n".join(", ".join(rng.choices(_GOODS, k=12)) for _ in range(rng.randint(8, 20)))
        case "word salad":
            return _sentences(rng.choices(words, k=rng.randint(200, 500)), rng)
        case "repeated lines":
            lines = [line for line in rng.choice(pages).split(". ") if len(line) > 30][:3] or ["Nothing to see here"]
            return "\n".join(f"{line}." for line in lines * rng.randint(6, 12))
        case "gibberish":
            letters = "bcdfghjklmnpqrstvwxz"
            made = ["".join(rng.choices(letters, k=rng.randint(3, 11))) for _ in range(rng.randint(150, 400))]
            return _sentences(made, rng)
        case "code":
            return "\n\n".join(rng.sample(list(code), min(len(code), 6)))
        case "numbers":
            rows = range(rng.randint(20, 60))
            return "\n".join("\t".join(f"{rng.uniform(0, 1e4):.2f}" for _ in range(8)) for _ in rows)
    raise ValueError(kind)


JUNK = ("boilerplate", "keyword spam", "word salad", "repeated lines", "gibberish", "code", "numbers")
"""Kinds of junk; "word salad" is uniformly drawn words of the language, in sentences."""


def programs(data: Path) -> list[str]:
    """Programs, for the junk of kind "code"."""
    return [record["prompt"] + record["canonical_solution"] for record in records(data, CODE)]


def _sentences(words: Sequence[str], rng: random.Random) -> str:
    """Words in sentences of ten, with capitals and dots, in paragraphs."""
    parts = [" ".join(words[first : first + 10]).capitalize() + "." for first in range(0, len(words), 10)]
    return "\n".join(" ".join(parts[first : first + 5]) for first in range(0, len(parts), 5))


def spoilt(text: str, share: float, words: Sequence[str], rng: random.Random) -> str:
    """A near-duplicate: this share of the words, at random places, is replaced by other words."""
    parts = text.split(" ")
    for place in rng.sample(range(len(parts)), max(1, round(share * len(parts)))):
        parts[place] = rng.choice(words)
    return " ".join(parts)


def url_of(place: int) -> str:
    """The URL that `write_wet` gives to the page with this index."""
    return f"https://www.site{place % 997}.org/page/{place}.html"


def write_wet(path: Path, texts: Iterable[str]) -> int:
    """Write a WET file with Common Crawl's headers and one gzip member per record. Returns the bytes of the text."""
    from warcio.warcwriter import WARCWriter

    size = 0
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record(path.name, {"Software-Info": "ia-web-commons"}))
        for place, text in enumerate(texts):
            content = text.encode()
            record = writer.create_warc_record(
                url_of(place),
                "conversion",
                payload=BytesIO(content),
                warc_content_type="text/plain",
                warc_headers_dict={"WARC-Date": "2026-01-01T00:00:00Z", "WARC-Refers-To": f"<urn:uuid:{place:032x}>"},
            )
            writer.write_record(record)
            size += len(content)
    return size
