"""Tables with a row for every token: how their shards take the rows of a smaller vocabulary, and what new rows are."""

from math import prod

import torch

from megagpt.checkpoint import Shard
from megagpt.config.schema import ModelConfig

TABLES = ("model/embedding.word_embeddings.weight", "model/output_layer.weight", "model/output_layer.bias")
"""Tensors with a row for every token, [padded vocabulary, hidden size], or with a number, [padded vocabulary]."""


def tables_of(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of those that a model has; with tied embeddings the projection shares the first."""
    has = (True, model.head == "tokens" and not model.tie_embeddings, model.head == "tokens" and model.output_bias)
    rows, width = model.padded_vocab_size, model.hidden_size
    shapes = ((rows, width), (rows, width), (rows,))
    return {name: shape for name, shape, here in zip(TABLES, shapes, has, strict=True) if here}


def old_rows(shard: Shard, count: int, padded: int) -> Shard:
    """The part of a table's shard that lies in its first `count` rows, as a shard of the old table of `padded` rows."""
    start, stop, data = _rows(shard, 0, count)
    width, above = shard.global_shape[1:], min(shard.offset[0], count)
    rows = min(shard.offset[0] + shard.shape[0], count) - above
    return Shard(
        name=shard.name,
        global_shape=(padded, *width),
        offset=(above, *(0 for _ in width)),
        shape=(rows, *width),
        flat=(start, stop) if start < stop else (0, 0),  # a rank may hold none of them
        data=data,
    )


def fill_rows(shard: Shard, first: int, last: int, row: torch.Tensor) -> None:
    """Set the rows first..last-1 of a table, as far as its shard holds them, to `row`: float [hidden size], or [1]."""
    start, stop, data = _rows(shard, first, last)
    data.copy_(row[torch.arange(start, stop) % len(row)])


def _rows(shard: Shard, first: int, last: int) -> tuple[int, int, torch.Tensor]:
    """The part of a table's shard in the rows first..last-1: a range of its box's elements, and their data, 1-D."""
    above, width = shard.offset[0], prod(shard.global_shape[1:])
    begin, end = shard.range
    start, stop = (min(max((row - above) * width, begin), end) for row in (first, last))
    return start, stop, shard.data.view(-1)[start - begin : stop - begin]
