"""What each step may be told: thresholds, files and switches, with the values of the publications as defaults.

A threshold that is None is not asked. `recipe` reads these from YAML and checks the ranges that the fields carry.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def share(default: float | None) -> Any:
    """A field from 0 to 1."""
    return number(default, 0, 1)


def number(default: float | None, least: float = 0, most: float = float("inf")) -> Any:
    """A field with a number from `least` to `most`."""
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True)
class Languages:
    """Which languages are kept."""

    keep: tuple[str, ...] = ("en",)
    """ISO 639-1 codes."""
    min_score: float = share(0.65)
    """CLD2: the share of the text that is in the language. fastText: the probability of the language."""
    model: str = "cld2"
    """cld2, whose tables come with its package, or a file of fastText's lid.176.bin or lid.176.ftz."""


@dataclass(frozen=True)
class Urls:
    """Which addresses are refused. Lists are files with one entry a line; # begins a comment."""

    lists: Literal["small", "datatrove", "none"] = "small"
    """Lists beside those of the files: a few words, all that datatrove brings (FineWeb's), or none."""
    domains: str | None = None
    """Domains; a domain stands for all below it."""
    urls: str | None = None
    """Whole addresses."""
    strict_words: str | None = None
    """Refused anywhere in the address, whatever stands between their letters."""
    hard_words: str | None = None
    """Refused as words of the address."""
    soft_words: str | None = None
    """Refused when there are several."""
    min_soft_words: int = number(2, 1)


@dataclass(frozen=True)
class Lines:
    """RefinedWeb's rules about lines (arXiv 2306.01116, appendix G.2)."""

    max_uppercase: float | None = share(0.5)
    """Of a line's characters."""
    numbers: bool = True
    """Lines of digits alone go."""
    counters: bool = True
    """Lines such as "3 likes" go."""
    min_words: int | None = number(2)
    phrases: bool = True
    """"Sign-in" at the start, "Read more..." at the end and "items in cart" anywhere are cut out of short lines."""
    max_phrase_words: int = number(10)
    """Words of a line that is short enough for `phrases`."""
    max_newlines: int | None = number(2, 1)
    """In a row; what is more goes."""
    max_removed: float | None = share(0.05)
    """Of the words; a page that would lose more is dropped."""


@dataclass(frozen=True)
class C4:
    """C4's rules (arXiv 1910.10683, section 2.2; c4_utils.py of TensorFlow Datasets), as datatrove applies them."""

    terminal_marks: str | None = ".?!\"'"
    """Lines that end with none of them, or with three dots, go."""
    min_words: int | None = number(3)
    """Of a line; others go."""
    max_word_length: int | None = number(1000, 1)
    """Lines with a longer word go."""
    citations: bool = True
    """[12], [edit] and [citation needed] are cut out of lines."""
    javascript: bool = True
    """Lines with this word go."""
    policy: bool = True
    """Lines about cookies and terms of use go."""
    lorem_ipsum: bool = True
    """Pages with this phrase go."""
    curly_bracket: bool = True
    """Pages with one go."""
    min_sentences: int | None = number(5)
    """Of the lines that stay; pages with fewer go."""
    bad_words: str | None = None
    """File of words or phrases, one a line: pages with one go."""
    min_paragraphs: int | None = number(None)
    """mC4: so many lines must have at least `min_paragraph_length` characters (3 of 200)."""
    min_paragraph_length: int = number(200)


@dataclass(frozen=True)
class GopherQuality:
    """Gopher's rules about quality (arXiv 2112.11446, appendix A1.1)."""

    min_words: int | None = number(50)
    """Of words that are more than punctuation, like the next three."""
    max_words: int | None = number(100_000)
    min_mean_word_length: float | None = number(3)
    max_mean_word_length: float | None = number(10)
    max_hashes: float | None = number(0.1)
    """`#` a word."""
    max_ellipses: float | None = number(0.1)
    """Ellipses a word."""
    max_bullet_lines: float | None = share(0.9)
    max_ellipsis_lines: float | None = share(0.3)
    """Lines that end with one."""
    min_alphabetic_words: float | None = share(0.8)
    """Words with a letter."""
    min_stop_words: int | None = number(2)
    """Different ones of the, be, to, of, and, that, have, with."""


@dataclass(frozen=True)
class GopherRepetition:
    """Gopher's rules about repetition (arXiv 2112.11446, table A1): shares of the lines, paragraphs or characters."""

    duplicate_lines: float | None = share(0.30)
    duplicate_paragraphs: float | None = share(0.30)
    duplicate_line_characters: float | None = share(0.20)
    duplicate_paragraph_characters: float | None = share(0.20)
    top_2grams: float | None = share(0.20)
    """Characters in the most frequent run of so many words."""
    top_3grams: float | None = share(0.18)
    top_4grams: float | None = share(0.16)
    duplicate_5grams: float | None = share(0.15)
    """Characters in runs of so many words that stood before."""
    duplicate_6grams: float | None = share(0.14)
    duplicate_7grams: float | None = share(0.13)
    duplicate_8grams: float | None = share(0.12)
    duplicate_9grams: float | None = share(0.11)
    duplicate_10grams: float | None = share(0.10)


@dataclass(frozen=True)
class FineWeb:
    """FineWeb's own rules (arXiv 2406.17557, section 3.6)."""

    min_punctuated_lines: float | None = share(0.12)
    """Lines that end a sentence."""
    max_short_lines: float | None = share(0.67)
    short_line: int = number(30)
    """Characters of a line that is short."""
    max_duplicate_characters: float | None = share(0.01)
    """In lines that stood before."""
    max_newlines: float | None = number(0.3)
    """Line breaks a word."""


@dataclass(frozen=True)
class Quality:
    """What is kept by the score of a classifier."""

    rule: Literal["pareto", "threshold", "share"] = "pareto"
    """By chance, a score that grows with it (GPT-3); from a score on (DCLM); or the best share of all documents."""
    alpha: float = number(9)
    """Of `pareto`: a document of score s stays with probability (2 - s)^-alpha."""
    threshold: float = share(0.5)
    """Of `threshold`."""
    share: float = share(0.1)
    """Of `share`."""
    model: str | None = None
    """Made by `megagpt data quality train`."""


@dataclass(frozen=True)
class Pii:
    """Which secrets and personal data are replaced."""

    secrets: bool = True
    """Keys and passwords."""
    emails: bool = True
    addresses: bool = True
    """Public IP addresses."""
    phones: bool = False
    max_spans: int | None = number(None)
    """E-mail addresses, IP addresses and telephone numbers; a document with more is dropped (Dolma: 5)."""


@dataclass(frozen=True)
class Near:
    """How near-duplicates are found: MinHash of runs of words."""

    words: int = number(5, 1)
    """In a run."""
    buckets: int = number(14, 1)
    hashes: int = number(8, 1)
    """Hashes that must agree in one bucket: half of the pairs with a similarity of (1/buckets)^(1/hashes) are found."""
    verify: float | None = share(None)
    """Jaccard similarity of the runs that pairs found must truly have."""


@dataclass(frozen=True)
class Duplicates:
    """Which copies are removed."""

    urls: bool = False
    documents: bool = False
    lines: bool = False
    spans: int | None = number(None, 1)
    """So many sentences in a row that stood before go (C4: 3)."""
    near: Near | None = None


@dataclass(frozen=True)
class Decontamination:
    """How text of evaluation files is cut out (GPT-3, arXiv 2005.14165, appendix C)."""

    ngram: int = number(13, 1)
    """Words in a row that count as an overlap."""
    window: int = number(200)
    """Characters that go on each side of an overlap."""
    min_piece: int = number(200)
    """Characters; shorter pieces go."""
    max_pieces: int = number(10, 1)
    """A document that falls into more goes."""
    max_documents: int = number(10, 1)
    """Runs of words in more documents of the corpus are no overlap."""
