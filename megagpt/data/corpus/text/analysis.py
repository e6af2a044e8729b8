"""Properties of a text that several rules use. Each is computed once, at its first use."""

import re
from functools import cached_property
from itertools import chain, islice

import numpy as np

from megagpt.data.corpus.grams import hash_each

# Letters of scripts without spaces between words: Thai to Myanmar, Khmer, kana, Han, and their extensions.
UNSPACED = (
    "\u0e00-\u0eff\u0f40-\u0fbc\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3005-\u3007\u3031-\u3035"
    "\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9fe\uaa60-\uaadf\uf900-\ufaff"
    "\uff66-\uff9d\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")

# A sentence ends after a mark and closing quotes and brackets. In scripts with spaces, a space must follow, and no
# small letter after it. A dot after a single capital belongs to an initial. The pattern visits no character twice, and
# begins with the mark, before the lookbehinds: `re` searches for a fixed first character much faster.
_SENTENCE = re.compile(
    r"""[.!?…؟।॥。！？｡](?:"""
    r"""(?<=[.!?…؟।॥])(?<![.!?…؟।॥].)(?<!\b[A-Z]\.)[.!?…]*+["'”’»)\]]*+\s++(?![a-z])|"""
    r"""(?<=[。！？｡])[。！？｡]*+["'”’」』）]*+\s*+)"""
)


class Analysis:
    """A text and its properties. All arrays have one element per word of `words`, except `characters`."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def lines(self) -> list[str]:
        """The lines by `str.splitlines`, including empty ones."""
        return self.text.splitlines()

    @cached_property
    def paragraphs(self) -> list[str]:
        """The parts between empty lines."""
        text = self.text.strip()
        return re.split(r"\n{2,}", text) if "\n\n" in text else [text]

    @cached_property
    def sentences(self) -> list[str]:
        """Sentences with the white space after them; joined, they are the text."""
        return split_sentences(self.text)

    @cached_property
    def words(self) -> list[str]:
        """The parts between white space. In scripts without spaces, every letter is a word."""
        return split_words(self.text)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [words]: number of characters of every word."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [words]: position in `characters` at which every word begins."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def characters(self) -> np.ndarray:
        """Code points of all words joined without spaces: uint8 for ASCII, else uint32."""
        joined = "".join(self.words)
        if joined.isascii():
            return np.frombuffer(joined.encode(), np.uint8)
        return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 [words]: 64-bit xxh3 of every word, the same in every process."""
        return hash_words(self.words)

    @cached_property
    def lower_hashes(self) -> np.ndarray:
        """uint64 [words]: 64-bit xxh3 of every word in lower case."""
        lower = "\n".join(self.words).lower()
        return hash_words(lower.split("\n") if lower else [])


def split_words(text: str) -> list[str]:
    """The words of `text`; see `Analysis.words`."""
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return text.split()
    return _WORD.findall(text)


def hash_words(words: list[str]) -> np.ndarray:
    """uint64 [words]: 64-bit xxh3 of words without line breaks."""
    encoded = "\n".join(words).encode("utf-8", "surrogatepass").split(b"\n") if words else []
    return hash_each(encoded)


def count_sentences(text: str, most: int) -> int:
    """Number of sentences of `split_sentences`, at most `most`; the text after them is not read."""
    end, count = 0, 0
    for match in islice(_SENTENCE.finditer(text), most):
        end, count = match.end(), count + 1
    return count + (count < most and end < len(text))


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, each with the white space after it, by punctuation only."""
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [text[start:end] for start, end in zip(chain([0], ends), ends, strict=False)] if text else []
