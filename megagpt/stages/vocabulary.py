"""Grows the vocabulary of tensors with one row per token: copies the old rows and fills the new ones."""

from math import prod

import torch

from megagpt.checkpoint import Shard
from megagpt.config.schema import ModelConfig

TABLES = ("model/embedding.word_embeddings.weight", "model/output_layer.weight", "model/output_layer.bias")
"""Names of tensors with a row or a number per token: [padded vocabulary, hidden size] or [padded vocabulary]."""


def tables_of(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tables that a model has; with tied embeddings the projection has no table of its own."""
    has = (True, model.head == "tokens" and not model.tie_embeddings, model.head == "tokens" and model.output_bias)
    rows, width = model.padded_vocab_size, model.hidden_size
    shapes = ((rows, width), (rows, width), (rows,))
    return {name: shape for name, shape, here in zip(TABLES, shapes, has, strict=True) if here}


def old_rows(shard: Shard, count: int, padded: int) -> Shard:
    """The part of `shard` in the table's first `count` rows, as a shard of the old table, which has `padded` rows."""
    start, stop, data = _rows(shard, 0, count)
    width, above = shard.global_shape[1:], min(shard.offset[0], count)
    rows = min(shard.offset[0] + shard.shape[0], count) - above
    return Shard(
        name=shard.name,
        global_shape=(padded, *width),
        offset=(above, *(0 for _ in width)),
        shape=(rows, *width),
        flat=(start, stop) if start < stop else (0, 0),  # a rank may hold none of the old rows
        data=data,
    )


def fill_rows(shard: Shard, first: int, last: int, row: torch.Tensor) -> None:
    """Set the rows first..last-1 of a table to `row`, as far as `shard` holds them; row: float [hidden size] or [1]."""
    start, stop, data = _rows(shard, first, last)
    data.copy_(row[torch.arange(start, stop) % len(row)])


def _rows(shard: Shard, first: int, last: int) -> tuple[int, int, torch.Tensor]:
    """The part of `shard` in the table's rows first..last-1: (start, stop) in the shard's box, and the data, 1-D."""
    above, width = shard.offset[0], prod(shard.global_shape[1:])
    begin, end = shard.range
    start, stop = (min(max((row - above) * width, begin), end) for row in (first, last))
    return start, stop, shard.data.view(-1)[start - begin : stop - begin]
