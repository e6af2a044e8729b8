"""Keys and values of the tokens that went through the model, so that the next token costs one token's work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megagpt.data.batch import send

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles of a pass's tokens, [T, 1, D] each."""


class CachedAttention(Protocol):
    """Attention of one layer, as `layers.CoreAttention` has it."""

    window: int | None
    """Keys that a query sees, itself included; None: all before it."""

    def cached(
        self, q: Tensor, k: Tensor, v: Tensor, first_key: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """See `layers.CoreAttention.cached`."""
        ...


class KVCache:
    """Keys (already rotated) and values of some sequences, for every layer of this rank.

    A sequence is a row. All rows end at the same column, so a shorter one begins later. A pass reads either the prompts
    of new rows or one more token of every row: `begin_prompts` and `begin_tokens` return it. Give the pass and its
    tokens, one after the other without padding, to all GPT chunks of the rank before the next one begins.
    """

    def __init__(self, layers: int, rows: int, columns: int, device: torch.device) -> None:
        """Room for `rows` sequences of up to `columns` tokens in each of `layers` layers."""
        self.layers, self.rows, self.columns, self.device = layers, rows, columns, device
        self._begins: list[int] = []  # first column of each row
        self._end = 0
        self._stored: Tensor | None = None  # [layers, 2, rows, groups, columns, D]: the tokens of a head lie together
        self._slots: dict[int, int] = {}  # place of a layer in `_stored`, by its number

    def begin_prompts(self, lengths: Sequence[int]) -> "Pass":
        """A pass over sequences of these lengths, none longer than those there, which become the last rows."""
        longest, old = max(lengths), len(self._begins)
        if not old:
            self._end = longest
        self._begins += [self._end - length for length in lengths]
        first, counts = self._end - longest, torch.tensor(lengths)
        positions = torch.arange(longest) - (longest - counts[:, None])  # on the CPU, where counting waits for nobody
        row, column = (positions >= 0).nonzero(as_tuple=True)
        positions, row, column = (send(values, self.device) for values in (positions[row, column], row, column))
        return Pass(
            cache=self,
            rows=slice(old, old + len(lengths)),
            columns=slice(first, self._end),
            positions=positions,
            first_key=self._first_key(self._begins[old:], first),
            places=(row + old, column + first),
            padded=(row, column),
            last_tokens=send(counts.cumsum(0) - 1, self.device),
        )

    def begin_tokens(self) -> "Pass":
        """A pass over one more token of every row."""
        if self._end == self.columns:
            self._make_room()
        self._end += 1
        rows, first = slice(len(self._begins)), min(self._begins)
        return Pass(
            cache=self,
            rows=rows,
            columns=slice(first, self._end),
            positions=self._end - 1 - self.tensor(self._begins),
            first_key=self._first_key(self._begins, first),
            places=(rows, self._end - 1),
        )

    def store(self, layer: int, key: Tensor, value: Tensor, current: "Pass") -> tuple[Tensor, Tensor]:
        """Remember a pass's `key` and `value` [T, groups, D]; returns those that it sees, [B, Sk, groups, D]."""
        if self._stored is None:  # zeros, because hidden keys must be finite too
            _, groups, width = key.shape
            self._stored = key.new_zeros(self.layers, 2, self.rows, groups, self.columns, width)
        keys, values = self._stored[self._slots.setdefault(layer, len(self._slots))].unbind()
        row, column = current.places
        keys[row, :, column], values[row, :, column] = key, value
        keys, values = (held[current.rows, :, current.columns].transpose(1, 2) for held in (keys, values))
        return keys, values

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Forget these rows; returns the old number of each row that is left. The last rows move into the gaps."""
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
        """Row i becomes what row `rows[i]` is; a row may be taken several times, and those not taken are forgotten.

        first_column: columns before it are known to hold the same in both rows, and stay as they are.
        """
        columns = slice(max(first_column, min(self._begins)), self._end)
        moved = [row for row, old in enumerate(rows) if row != old]
        if moved:
            old = self.tensor([rows[row] for row in moved])
            moved = self.tensor(moved)
            for layer in self._stored:  # one by one, since what is taken is a copy
                layer[:, moved, :, columns] = layer[:, old, :, columns]
        self._begins = [self._begins[row] for row in rows]

    def tensor(self, values: Sequence[int]) -> Tensor:
        """int64 tensor on the cache's device."""
        return send(torch.tensor(values, dtype=torch.int64), self.device)

    def _first_key(self, begins: Sequence[int], first: int) -> Tensor | None:
        hidden = [begin - first for begin in begins]
        return self.tensor(hidden).int() if any(hidden) else None

    def _make_room(self) -> None:
        """Move all rows to the left as far as possible."""
        rows, first = slice(len(self._begins)), min(self._begins)
        self._stored[:, :, rows, :, : self._end - first] = self._stored[:, :, rows, :, first : self._end].clone()
        self._begins, self._end = [begin - first for begin in self._begins], self._end - first


@dataclass(frozen=True)
class Pass:
    """One pass through the model over T tokens of B rows: whole prompts, or one token of every row."""

    cache: KVCache
    rows: slice
    """Its rows."""
    columns: slice
    """Columns that it sees; the last is that of its newest tokens."""
    positions: Tensor
    """int64 [T]: position of each token in its sequence."""
    first_key: Tensor | None
    """int32 [B]: number of columns before each row's first token, among those that the pass sees; None: all are 0."""
    places: tuple[Tensor | slice, Tensor | int]
    """Row and column of the cache for each token."""
    padded: tuple[Tensor, Tensor] | None = None
    """Row and column of each token in [B, Sq]; None for one token a row, where nothing is padded."""
    last_tokens: Tensor | None = None
    """int64 [B]: number of each row's last token among the T; None for one token a row."""

    def rotation(self, table: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of the pass's tokens, see `rotation_at`; the same for all layers."""
        return rotation_at(self.positions, table, dtype)

    def attend(self, layer: int, attention: CachedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Remember keys and values [T, groups, D] of a layer, and let queries [T, heads, D] see them: [T, heads, D]."""
        key, value = self.cache.store(layer, key, value, self)
        return self.unpad(attention.cached(self.pad(query), key, value, self.first_key))

    def pad(self, values: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [B, Sq, ...], zeros before a row's first token."""
        if self.padded is None:
            return values[:, None]
        width = self.columns.stop - self.columns.start
        padded = values.new_zeros(len(self.last_tokens), width, *values.shape[1:])
        padded[self.padded] = values
        return padded

    def unpad(self, values: Tensor) -> Tensor:
        """[B, Sq, ...] -> [T, ...]: the reverse of `pad`."""
        return values[:, 0] if self.padded is None else values[self.padded]

    def last(self, values: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [B, ...] of each row's last token."""
        return values if self.last_tokens is None else values[self.last_tokens]


def rotation_at(positions: Tensor, table: Tensor, dtype: torch.dtype) -> Rotation:
    """The rotation of tokens at `positions`, int64 [T], of all angles in `table` [positions, 1, 1, D]."""
    angles = table[positions].squeeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys [T, heads, D] (rotary position embedding, halves paired)."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
