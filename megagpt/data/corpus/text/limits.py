"""Settings of each step: thresholds, files and switches, with the published values as defaults.

A threshold of None is not checked. `recipe` reads these settings from YAML and checks the ranges of the fields.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def share(default: float | None) -> Any:
    """A field with a number from 0 to 1."""
    return number(default, 0, 1)


def number(default: float | None, least: float = 0, most: float = float("inf")) -> Any:
    """A field with a number from `least` to `most`."""
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True)
class Languages:
    """Languages to keep."""

    keep: tuple[str, ...] = ("en",)
    """ISO 639-1 codes."""
    min_score: float = share(0.65)
    """CLD2: smallest share of the text in the language. fastText: smallest probability of the language."""
    model: str = "cld2"
    """cld2, whose tables are in its package, or the path of fastText's lid.176.bin or lid.176.ftz."""


@dataclass(frozen=True)
class Urls:
    """Addresses to refuse. Lists are files with one entry per line; # begins a comment."""

    lists: Literal["small", "datatrove", "none"] = "small"
    """Built-in lists, in addition to the files: a few words, all lists of datatrove (FineWeb's), or none."""
    domains: str | None = None
    """File of domains; subdomains are refused too."""
    urls: str | None = None
    """File of whole addresses."""
    strict_words: str | None = None
    """File of words that are refused anywhere in the address, also with other characters between their letters."""
    hard_words: str | None = None
    """File of words that are refused as whole words of the address."""
    soft_words: str | None = None
    """File of words that are refused if the address has at least `min_soft_words` of them."""
    min_soft_words: int = number(2, 1)


@dataclass(frozen=True)
class Lines:
    """RefinedWeb's rules about lines (arXiv 2306.01116, appendix G.2)."""

    max_uppercase: float | None = share(0.5)
    """Largest share of capitals in a line's characters; other lines are removed."""
    numbers: bool = True
    """Remove lines that consist of digits."""
    counters: bool = True
    """Remove lines such as "3 likes"."""
    min_words: int | None = number(2)
    """Remove lines with fewer words."""
    phrases: bool = True
    """Cut "Sign-in" at the start, "Read more..." at the end and "items in cart" anywhere out of short lines."""
    max_phrase_words: int = number(10)
    """Largest number of words of a short line, for `phrases`."""
    max_newlines: int | None = number(2, 1)
    """Largest number of line breaks in a row; more are removed."""
    max_removed: float | None = share(0.05)
    """Largest share of the words that these rules may remove; a page that would lose more is dropped."""


@dataclass(frozen=True)
class C4:
    """C4's rules (arXiv 1910.10683, section 2.2; c4_utils.py of TensorFlow Datasets), as datatrove applies them."""

    terminal_marks: str | None = ".?!\"'"
    """Remove lines that end with none of these marks, or with three dots."""
    min_words: int | None = number(3)
    """Remove lines with fewer words."""
    max_word_length: int | None = number(1000, 1)
    """Remove lines with a longer word, in characters."""
    citations: bool = True
    """Cut [12], [edit] and [citation needed] out of lines."""
    javascript: bool = True
    """Remove lines with the word javascript."""
    policy: bool = True
    """Remove lines about cookies and terms of use."""
    lorem_ipsum: bool = True
    """Drop pages with the phrase lorem ipsum."""
    curly_bracket: bool = True
    """Drop pages with a curly bracket."""
    min_sentences: int | None = number(5)
    """Drop pages whose remaining lines have fewer sentences."""
    bad_words: str | None = None
    """File of words or phrases, one per line; drop pages with one of them."""
    min_paragraphs: int | None = number(None)
    """Drop pages with fewer lines of at least `min_paragraph_length` characters (mC4: 3 lines of 200)."""
    min_paragraph_length: int = number(200)


@dataclass(frozen=True)
class GopherQuality:
    """Gopher's rules about quality (arXiv 2112.11446, appendix A1.1)."""

    min_words: int | None = number(50)
    """This and the next three limits do not count words that are only punctuation."""
    max_words: int | None = number(100_000)
    min_mean_word_length: float | None = number(3)
    max_mean_word_length: float | None = number(10)
    max_hashes: float | None = number(0.1)
    """Largest number of `#` per word."""
    max_ellipses: float | None = number(0.1)
    """Largest number of ellipses per word."""
    max_bullet_lines: float | None = share(0.9)
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float | None = share(0.3)
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: float | None = share(0.8)
    """Smallest share of words with a letter."""
    min_stop_words: int | None = number(2)
    """Smallest number of different words out of the, be, to, of, and, that, have, with."""


@dataclass(frozen=True)
class GopherRepetition:
    """Gopher's rules about repetition (arXiv 2112.11446, table A1): limits of shares of lines, paragraphs or text."""

    duplicate_lines: float | None = share(0.30)
    duplicate_paragraphs: float | None = share(0.30)
    duplicate_line_characters: float | None = share(0.20)
    duplicate_paragraph_characters: float | None = share(0.20)
    top_2grams: float | None = share(0.20)
    """Share of the characters in the most frequent run of 2 words; likewise for 3 and 4."""
    top_3grams: float | None = share(0.18)
    top_4grams: float | None = share(0.16)
    duplicate_5grams: float | None = share(0.15)
    """Share of the characters in repeated runs of 5 words; likewise for 6 to 10."""
    duplicate_6grams: float | None = share(0.14)
    duplicate_7grams: float | None = share(0.13)
    duplicate_8grams: float | None = share(0.12)
    duplicate_9grams: float | None = share(0.11)
    duplicate_10grams: float | None = share(0.10)


@dataclass(frozen=True)
class FineWeb:
    """FineWeb's own rules (arXiv 2406.17557, section 3.6)."""

    min_punctuated_lines: float | None = share(0.12)
    """Smallest share of lines that end a sentence."""
    max_short_lines: float | None = share(0.67)
    """Largest share of short lines."""
    short_line: int = number(30)
    """Largest number of characters of a short line."""
    max_duplicate_characters: float | None = share(0.01)
    """Largest share of the characters in repeated lines."""
    max_newlines: float | None = number(0.3)
    """Largest number of line breaks per word."""


@dataclass(frozen=True)
class Quality:
    """Keeping documents by the score of a classifier."""

    rule: Literal["pareto", "threshold", "share"] = "pareto"
    """`pareto`: keep by chance, more likely with a higher score (GPT-3). `threshold`: keep from a score on (DCLM).
    `share`: keep the best share of all documents."""
    alpha: float = number(9)
    """For `pareto`: a document of score s is kept with probability (2 - s)^-alpha."""
    threshold: float = share(0.5)
    """For `threshold`: smallest score."""
    share: float = share(0.1)
    """For `share`: share of the documents to keep."""
    model: str | None = None
    """Folder of the classifier, made by `megagpt data quality train`."""


@dataclass(frozen=True)
class Pii:
    """Secrets and personal data to replace."""

    secrets: bool = True
    """Keys and passwords."""
    emails: bool = True
    addresses: bool = True
    """Public IP addresses."""
    phones: bool = False
    max_spans: int | None = number(None)
    """Largest number of e-mail addresses, IP addresses and telephone numbers; drop documents with more (Dolma: 5)."""


@dataclass(frozen=True)
class Near:
    """Search for near-duplicates: MinHash of runs of words."""

    words: int = number(5, 1)
    """Number of words in a run."""
    buckets: int = number(14, 1)
    """Number of buckets; documents match if one bucket agrees."""
    hashes: int = number(8, 1)
    """Hashes per bucket. About half of the pairs with a similarity of (1/buckets)^(1/hashes) are found."""
    verify: float | None = share(None)
    """Smallest exact Jaccard similarity of the runs; matches with less are kept. None: no check."""


@dataclass(frozen=True)
class Duplicates:
    """Copies to remove."""

    urls: bool = False
    """Drop documents with the URL of an earlier one."""
    documents: bool = False
    """Drop documents with the text of an earlier one."""
    lines: bool = False
    """Cut out repeated lines."""
    spans: int | None = number(None, 1)
    """Cut out repeated runs of this many sentences (C4: 3)."""
    near: Near | None = None


@dataclass(frozen=True)
class Decontamination:
    """Cutting text of evaluation files out of documents (GPT-3, arXiv 2005.14165, appendix C)."""

    ngram: int = number(13, 1)
    """Number of words in a row that count as an overlap."""
    window: int = number(200)
    """Number of characters to remove on each side of an overlap."""
    min_piece: int = number(200)
    """Remove shorter pieces, in characters."""
    max_pieces: int = number(10, 1)
    """Drop documents that would have more pieces."""
    max_documents: int = number(10, 1)
    """Runs of words in more documents of the corpus do not count as overlaps."""
