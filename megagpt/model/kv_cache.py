"""KV cache: keys and values of past tokens, so that a new token needs only its own forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from megagpt.config.schema import Config
from megagpt.data.batch import send


class CachedAttention(Protocol):
    """Interface of one layer's attention; `attention.CoreAttention` implements it."""

    window: int | None
    """Number of keys that a query sees, its own included; None: all keys up to its own."""
    takes_masks: bool
    """Whether hidden keys are given as a mask, which layers can share, instead of `first_key`."""

    def cached(
        self, q: Tensor, k: Tensor, v: Tensor, first_key: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """See `attention.CoreAttention.cached`."""
        ...


SPARE_COLUMNS = 64
"""Columns of the cache beyond the longest sequence, so that a new sequence seldom forces the others to move."""

FIRST_ROOM = (4, 256)
"""Initial rows and columns of a cache that grows."""


class KVCache:
    """Keys (already rotated) and values of several sequences, for every layer of this rank.

    Each sequence is a row. All rows end at the same column, so shorter rows begin later. A pass reads new tokens of
    every row (`begin_tokens`) or the prompts of new rows (`begin_prompts`). Give the pass and its tokens, concatenated
    without padding, to all GPT chunks of the rank before the next pass begins. A `JointPass` combines both kinds.
    """

    def __init__(self, layers: int, rows: int, columns: int, device: torch.device, grows: bool = False) -> None:
        """Room for `rows` sequences of up to `columns` tokens in each of `layers` layers.

        grows: whether memory is allocated when it is needed, instead of all at once.
        """
        self.layers, self.rows, self.columns, self.device = layers, rows, columns, device
        self._room = (min(rows, FIRST_ROOM[0]), min(columns, FIRST_ROOM[1])) if grows else (rows, columns)
        self._begins: list[int] = []  # first column of each row
        self._end = 0
        self._stored: Tensor | None = None  # [layers, 2, rows, groups, columns, D]: the tokens of a head are contiguous
        self._slots: dict[int, int] = {}  # layer number -> index in `_stored`
        self._begin_columns: tuple[list[int], Tensor] = ([], torch.empty(0))  # `_begins`, and its copy on the device

    def reserve(self, rows: int = 0, longest: int = 0, count: int = 1) -> None:
        """Make room for `count` more tokens in every row, and for `rows` new rows of up to `longest` tokens."""
        end = max(self._end + count, longest) if self._begins else longest
        moves = self._begins and longest > self._end + count
        if moves or end > self._room[1] or len(self._begins) + rows > self._room[0]:
            self._make_room(rows, longest, count)

    def begin_prompts(self, lengths: Sequence[int], kept: Sequence[Tensor | None] | None = None) -> "Pass":
        """A pass over new sequences of these lengths, which become the last rows.

        If the cache has rows already and a new one is longer than they are, call `reserve` first. kept: for each
        sequence, the known keys and values of its first n tokens, [layers, 2, groups, n, D] with n below its length, or
        None; the pass does not read these tokens.
        """
        longest, old = max(lengths), len(self._begins)
        if not old:
            self.reserve(len(lengths), longest)
            self._end = longest
        kept = kept or [None] * len(lengths)
        known = [0 if held is None else held.shape[3] for held in kept]
        self._begins += [self._end - length for length in lengths]
        for row, (begin, held) in enumerate(zip(self._begins[old:], kept, strict=True), old):
            if held is not None:
                self._allocate(held[0, 0].transpose(0, 1))[:, :, row, :, begin : begin + held.shape[3]] = held
        # Computed on the CPU, so that nothing waits for a GPU.
        first, counts = self._end - longest, torch.tensor(lengths) - torch.tensor(known)
        queries = int(counts.max())
        before = queries - counts[:, None]  # number of padding places at the left
        place = torch.arange(queries)
        row, column = (place >= before).nonzero(as_tuple=True)
        positions = (place - before + torch.tensor(known)[:, None])[row, column]
        even = len(positions) == queries * len(lengths)
        positions, row, column = (send(values, self.device) for values in (positions, row, column))
        return Pass(
            cache=self,
            rows=slice(old, old + len(lengths)),
            columns=slice(first, self._end),
            queries=queries,
            positions=positions,
            first_key=self._first_key(self._begins[old:], first),
            padded=None if even else (row, column),
            asked=send(counts.cumsum(0) - 1, self.device),
        )

    def begin_tokens(self, count: int = 1) -> "Pass":
        """A pass over the next `count` tokens of every row."""
        self.reserve(count=count)
        self._end += count
        if self._begin_columns[0] != self._begins:
            self._begin_columns = list(self._begins), self.tensor(self._begins)
        positions = self._end - 1 - self._begin_columns[1]
        if count > 1:
            positions = (positions[:, None] - torch.arange(count - 1, -1, -1, device=self.device)).flatten()
        rows, first = len(self._begins), min(self._begins)
        return Pass(
            cache=self,
            rows=slice(rows),
            columns=slice(first, self._end),
            queries=count,
            positions=positions,
            first_key=self._first_key(self._begins, first),
            asked=None if count == 1 else torch.arange(count - 1, count * rows, count, device=self.device),
        )

    def store(self, layer: int, key: Tensor, value: Tensor, current: "Pass") -> tuple[Tensor, Tensor]:
        """Store a pass's `key` and `value` [T, groups, D]; returns all that it sees, [B, Sk, groups, D] each."""
        keys, values = self._allocate(key)[self._slots.setdefault(layer, len(self._slots))].unbind()
        if current.padded is None:
            new = slice(current.columns.stop - current.queries, current.columns.stop)
            keys[current.rows, :, new] = current.pad(key).transpose(1, 2)
            values[current.rows, :, new] = current.pad(value).transpose(1, 2)
        else:
            row, column = current.places
            keys[row, :, column], values[row, :, column] = key, value
        keys, values = (held[current.rows, :, current.columns].transpose(1, 2) for held in (keys, values))
        return keys, values

    def of_row(self, row: int, count: int) -> Tensor:
        """View of the keys and values of a row's first `count` tokens, [layers, 2, groups, count, D]."""
        begin = self._begins[row]
        return self._stored[:, :, row, :, begin : begin + count]

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Remove these rows and move the last rows into the gaps; returns the old number of each remaining row."""
        gone, kept = set(rows), len(self._begins) - len(rows)
        gaps = [row for row in range(kept) if row in gone]
        movers = [row for row in range(kept, len(self._begins)) if row not in gone]
        order = list(range(kept))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            columns = slice(min(self._begins), self._end)
            gaps, movers = self.tensor(gaps), self.tensor(movers)
            self._stored[:, :, gaps, :, columns] = self._stored[:, :, movers, :, columns]
        self._begins = [self._begins[row] for row in order]
        return order

    def reorder(self, rows: Sequence[int], first_column: int = 0) -> None:
        """Replace row i by row `rows[i]`; a row may be taken several times, and rows that are not taken are removed.

        first_column: columns before it are equal in both rows and are not copied.
        """
        columns = slice(max(first_column, min(self._begins)), self._end)
        moved = [row for row, old in enumerate(rows) if row != old]
        if moved:
            old = self.tensor([rows[row] for row in moved])
            moved = self.tensor(moved)
            for layer in self._stored:  # layer by layer, because indexing makes a temporary copy
                layer[:, moved, :, columns] = layer[:, old, :, columns]
        self._begins = [self._begins[row] for row in rows]

    def tensor(self, values: Sequence[int]) -> Tensor:
        """int64 tensor on the cache's device."""
        return send(torch.tensor(values, dtype=torch.int64), self.device)

    def _first_key(self, begins: Sequence[int], first: int) -> Tensor | None:
        hidden = [begin - first for begin in begins]
        return self.tensor(hidden).int() if any(hidden) else None

    def _allocate(self, like: Tensor) -> Tensor:
        """The storage, allocated at the first call with the dtype, groups and D of `like` [T, groups, D]."""
        if self._stored is None:  # zeros, because hidden keys must be finite too
            rows, columns = self._room
            self._stored = like.new_zeros(self.layers, 2, rows, like.shape[1], columns, like.shape[2])
        return self._stored

    def _make_room(self, rows: int, longest: int, count: int) -> None:
        """Move all rows as far to the left as `longest` allows, and enlarge the storage if needed, see `reserve`."""
        old, first = len(self._begins), min(self._begins, default=self._end)
        width = self._end - first
        end = max(width, longest - count)
        room = (
            _grown(self._room[0], old + rows, self.rows),
            _grown(self._room[1], end + max(count, SPARE_COLUMNS), self.columns),
        )
        if self._stored is not None and (old or room != self._room):
            used = self._stored[:, :, :old, :, first : self._end]
            if room == self._room:
                used = used.clone()
            else:
                shape = list(self._stored.shape)
                shape[2], shape[4] = room
                self._stored = self._stored.new_zeros(shape)
            self._stored[:, :, :old, :, end - width : end] = used
        self._room, shift = room, end - self._end
        self._begins, self._end = [begin + shift for begin in self._begins], end


def _grown(size: int, needed: int, limit: int) -> int:
    """`size`, doubled until it is at least `needed`, but at most `limit`."""
    while size < min(needed, limit):
        size = min(2 * size, limit)
    return size


@dataclass(frozen=True)
class Pass:
    """One pass through the model over T tokens of B rows: new tokens of every row, or the prompts of new rows."""

    cache: KVCache
    rows: slice
    """Rows of the cache."""
    columns: slice
    """Columns that the pass sees; the last one holds its newest tokens."""
    queries: int
    """Largest number of the pass's tokens in a row, Sq."""
    positions: Tensor
    """int64 [T]: position of each token in its sequence."""
    first_key: Tensor | None
    """int32 [B]: number of columns that the pass sees before each row's first token; None: all are 0."""
    padded: tuple[Tensor, Tensor] | None = None
    """Row and column of each token in [B, Sq]; None if there is no padding."""
    asked: Tensor | None = None
    """int64 [n]: indices (among the T tokens) of the tokens whose logits are wanted; None: all."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """{window: result of `mask`}, computed once for all layers."""

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Row and column of each token in the cache."""
        row, column = self.padded
        return row + self.rows.start, column + self.columns.stop - self.queries

    def attend(self, layer: int, attention: CachedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store a layer's keys and values [T, groups, D]; returns attention of queries [T, heads, D], same shape."""
        keys, values = self.cache.store(layer, key, value, self)
        query = self.pad(query)
        if self.first_key is None or not attention.takes_masks:
            return self.unpad(attention.cached(query, keys, values, self.first_key))
        mask = self.mask(attention.window)
        unseen = keys.shape[1] - mask.shape[-1]
        return self.unpad(attention.cached(query, keys[:, unseen:], values[:, unseen:], mask=mask))

    def mask(self, window: int | None) -> Tensor:
        """Bool [B, 1, Sq, Sk], True where a query does not see a key. Sk: the last columns, those that any query sees.

        A query sees its own key and the keys before it in its row, or the last `window` of these keys.
        """
        if window not in self.masks:
            width = self.columns.stop - self.columns.start
            seen = width if window is None else min(width, self.queries + window - 1)
            key = torch.arange(width - seen, width, device=self.first_key.device)
            hidden = (key < self.first_key[:, None])[:, None, None]
            if self.queries > 1:
                age = torch.arange(width - self.queries, width, device=key.device)[:, None] - key
                hidden = hidden | (age < 0)
                hidden = hidden if window is None else hidden | (age >= window)
            self.masks[window] = hidden
        return self.masks[window]

    def pad(self, values: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [B, Sq, ...], with zeros before a row's first token."""
        if self.padded is None:
            return values.view(-1, self.queries, *values.shape[1:])
        rows = self.rows.stop - self.rows.start
        padded = values.new_zeros(rows, self.queries, *values.shape[1:])
        padded[self.padded] = values
        return padded

    def unpad(self, values: Tensor) -> Tensor:
        """[B, Sq, ...] -> [T, ...]: the reverse of `pad`."""
        return values.flatten(0, 1) if self.padded is None else values[self.padded]

    def last(self, values: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [n, ...] of the tokens asked for."""
        return values if self.asked is None else values[self.asked]


class JointPass:
    """Several passes in one: their tokens are concatenated, and only attention treats them separately."""

    def __init__(self, parts: Sequence[Pass]) -> None:
        """parts: passes over different rows or caches, in the order in which they were begun."""
        self.parts, self.sizes = parts, [len(part.positions) for part in parts]
        self.positions = torch.cat([part.positions for part in parts])
        firsts = [sum(self.sizes[:number]) for number in range(len(parts))]
        self.asked = torch.cat(
            [
                first + (torch.arange(size, device=self.positions.device) if part.asked is None else part.asked)
                for part, first, size in zip(parts, firsts, self.sizes, strict=True)
            ]
        )

    def attend(self, layer: int, attention: CachedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Pass.attend`."""
        shares = zip(*(values.split(self.sizes) for values in (query, key, value)), strict=True)
        return torch.cat(
            [part.attend(layer, attention, *share) for part, share in zip(self.parts, shares, strict=True)]
        )

    def last(self, values: Tensor) -> Tensor:
        """See `Pass.last`."""
        return values[self.asked]


def tokens_within(gib: float, config: Config, dtype: torch.dtype) -> int:
    """Number of tokens whose keys and values take `gib` GiB on the rank with the most layers; same on all ranks."""
    parallel, model = config.parallel, config.model
    layers = -(-model.num_layers // parallel.pipeline_parallel_size)
    numbers = 2 * layers * -(-model.query_groups // parallel.tensor_parallel_size) * model.head_size
    return int(gib * 2**30 / (numbers * dtype.itemsize))
