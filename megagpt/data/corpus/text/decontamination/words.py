"""Words by which evaluations and corpora are compared: lower-cased white-space words without punctuation.

That is GPT-3's definition (arXiv 2005.14165, appendix C). Punctuation is what ASCII and Unicode call so
(string.punctuation, category P), and what is nothing else is no word: "it's - as they say -" and "Its as they say" are
the same four words. A letter of a script that writes no spaces, such as Han or Thai, is a word (`analysis`).
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
"""For bytes.translate: what str calls a space and bytes does not (0x1C to 0x1F) becomes one."""


class Spans(NamedTuple):
    """Words and where they stand."""

    words: list[bytes]
    starts: np.ndarray
    """First character of each word in the text, int64; likewise ends, the one after its last."""
    ends: np.ndarray


def plain_words(text: str) -> list[bytes]:
    """The words of `text`, in UTF-8."""
    text = text.lower()
    if not text.isascii():
        text = _WIDE_PUNCTUATION.sub("", _ALONE.sub(r" \g<0> ", text))
        text = " ".join(text.split())
    return text.encode("utf-8", "surrogatepass").translate(_ASCII, string.punctuation.encode()).split()


def word_spans(text: str) -> Spans:
    """The same words with their places, which takes about ten times as long."""
    found, starts, ends = [], [], []
    for token in _TOKEN.finditer(text):
        if word := _PUNCTUATION.sub("", token[0].lower()):
            found.append(word.encode("utf-8", "surrogatepass"))
            starts.append(token.start())
            ends.append(token.end())
    return Spans(found, np.array(starts, np.int64), np.array(ends, np.int64))


def word_hashes(text: str) -> np.ndarray:
    """64-bit hashes of the words, the same in every process: uint64 [words]."""
    return hash_each(plain_words(text))
