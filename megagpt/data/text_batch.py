"""Batches of texts for a model with an embedding head: one text per row, between the delimiters of its side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from megagpt.config.embedding import EmbedConfig
from megagpt.data.batch import Batch
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError

Side = Literal["query", "document"]
SIDES: tuple[Side, ...] = ("query", "document")


@dataclass(frozen=True, kw_only=True)
class TextBatch(Batch):
    """B texts, one per row.

    `labels`, int64 [B], are the positions of their last tokens, end-of-text. `loss_mask`, float32 [B], is 0 for rows
    that only fill the batch.
    """


class TextEncoder:
    """Encodes texts: start tokens of the tokenizer if any, prefix, text, suffix, end-of-text.

    A text that is too long is cut at its end.
    """

    def __init__(self, settings: EmbedConfig, sequence_length: int, tokenizer: Tokenizer) -> None:
        """Raises ConfigError when the delimiters leave no room for a text."""
        self.tokenizer, self.max_tokens = tokenizer, settings.max_tokens or sequence_length
        self._around = {
            "query": self._delimiters(settings.query_prefix, settings.query_suffix),
            "document": self._delimiters(settings.document_prefix, settings.document_suffix),
        }
        for side in SIDES:
            if self.room(side) < 1:
                raise ConfigError(
                    f"the delimiters of a {side} (embed.{side}_prefix, embed.{side}_suffix) and end-of-text leave no"
                    f" room for it in {self.max_tokens} tokens: raise embed.max_tokens or model.sequence_length"
                )

    def around(self, side: Side) -> tuple[list[int], list[int]]:
        """Tokens before and after a text, including end-of-text."""
        return self._around[side]

    def room(self, side: Side) -> int:
        """Largest number of tokens of a text that is not cut."""
        return self.max_tokens - sum(map(len, self.around(side)))

    def encode(self, texts: Sequence[str], side: Side) -> tuple[list[np.ndarray], np.ndarray]:
        """The tokens of the n texts, int64 [length] each, and whether each text was cut, bool [n]."""
        found = self.tokenizer.encode_batch(texts)
        rows = [self.row(tokens, side) for tokens in found]
        return rows, np.array([len(tokens) > self.room(side) for tokens in found], bool)

    def row(self, tokens: Sequence[int], side: Side) -> np.ndarray:
        """int64 [length]: a text's tokens between the delimiters, cut at `room` tokens."""
        before, after = self._around[side]
        return np.array([*before, *tokens[: self.room(side)], *after], np.int64)

    def batch(self, rows: Sequence[np.ndarray], count: int, length: int) -> TextBatch:
        """A batch of `count` rows of `length` tokens: the given rows, and empty rows that fill it.

        Attention is causal, so the padding after a text does not change its vector.
        """
        tokens = np.full((count, length), self.tokenizer.end_of_text_id, np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
        missing = count - len(rows)
        return TextBatch(
            tokens=torch.from_numpy(tokens),
            labels=torch.tensor([*(len(row) - 1 for row in rows), *[0] * missing], dtype=torch.int64),
            loss_mask=torch.tensor([1.0] * len(rows) + [0.0] * missing),
            position_ids=torch.arange(length).expand(count, length),
        )

    def _delimiters(self, prefix: str, suffix: str) -> tuple[list[int], list[int]]:
        encode, start = self.tokenizer.encode, self.tokenizer.start_ids
        return [*start, *encode(prefix)], [*encode(suffix), self.tokenizer.end_of_text_id]
