"""Words for comparing evaluations with corpora: lower-case parts between white space, without punctuation.

This is GPT-3's definition (arXiv 2005.14165, appendix C). Punctuation is ASCII's and Unicode's (string.punctuation,
category P). Punctuation alone is not a word: "it's - as they say -" and "Its as they say" are the same four words. In
scripts without spaces, such as Han or Thai, every letter is a word (see `analysis`).
"""

import re
import string
import unicodedata
from typing import NamedTuple

import numpy as np

from megagpt.data.corpus.grams import hash_each
from megagpt.data.corpus.text.analysis import UNSPACED

_WIDE = "".join(chr(code) for code in range(0x80, 0x10000) if unicodedata.category(chr(code)).startswith("P"))
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation + _WIDE)}]+")
_WIDE_PUNCTUATION = re.compile(f"[{re.escape(_WIDE)}]+")
_ALONE = re.compile(f"[{UNSPACED}]")
_TOKEN = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_ASCII = bytes(32 if chr(code).isspace() else code for code in range(128)) + bytes(range(128, 256))
"""Table for bytes.translate. It turns 0x1C to 0x1F into spaces, since only str counts them as white space."""


class Spans(NamedTuple):
    """Words and their positions in the text."""

    words: list[bytes]
    starts: np.ndarray
    """int64 [words]: position of the first character of each word."""
    ends: np.ndarray
    """int64 [words]: position after the last character of each word."""


def plain_words(text: str) -> list[bytes]:
    """The words of `text`, in UTF-8."""
    text = text.lower()
    if not text.isascii():
        text = _WIDE_PUNCTUATION.sub("", _ALONE.sub(r" \g<0> ", text))
        text = " ".join(text.split())
    return text.encode("utf-8", "surrogatepass").translate(_ASCII, string.punctuation.encode()).split()


def word_spans(text: str) -> Spans:
    """The words of `plain_words` with their positions; this takes about ten times as long."""
    found, starts, ends = [], [], []
    for token in _TOKEN.finditer(text):
        if word := _PUNCTUATION.sub("", token[0].lower()):
            found.append(word.encode("utf-8", "surrogatepass"))
            starts.append(token.start())
            ends.append(token.end())
    return Spans(found, np.array(starts, np.int64), np.array(ends, np.int64))


def word_hashes(text: str) -> np.ndarray:
    """uint64 [words]: hashes of the words, the same in every process."""
    return hash_each(plain_words(text))
