"""An embedder without a model: texts that share words have similar vectors."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np


class WordEmbedder:
    """A text's vector is the normalised sum of its words' vectors, which are random but always the same."""

    def __init__(self, size: int = 32) -> None:
        self.size = size
        self.calls: list[tuple[int, str]] = []
        """(number of texts, side) of every call."""

    def embed(self, texts: Sequence[str], side: str, dimensions: int | None = None, label: str = "") -> np.ndarray:
        rows = self.vectors(texts, side)[0][:, : dimensions or self.size]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def vectors(self, texts: Sequence[str], side: str, label: str = "") -> tuple[np.ndarray, int]:
        """A text of more than 6 words counts as cut short."""
        self.calls.append((len(texts), side))
        words = [re.findall(r"\w+", text.lower()) or [text] for text in texts]
        rows = np.stack([sum(map(self.word, own)) for own in words]).astype(np.float32)
        return rows, sum(len(own) > 6 for own in words)

    def word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).normal(size=self.size)
