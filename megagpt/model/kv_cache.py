"""Keys and values of the tokens that went through the model, so that the next token costs one token's work."""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """What attention remembers of some sequences: for every layer of this rank, keys (already rotated) and values.

    A sequence is a row; all rows end at the same column, so a shorter one begins later. A pass reads either the prompts
    of new rows or one more token of every row: call `begin_prompts` or `begin_tokens`, then hand the cache and the
    tokens, one after the other without padding, to all GPT chunks of the rank.
    """

    def __init__(self, layers: int, rows: int, columns: int, device: torch.device) -> None:
        """Room for `rows` sequences of `columns` tokens in each of `layers` layers."""
        self.layers, self.rows, self.columns, self.device = layers, rows, columns, device
        self.positions = torch.empty(0, dtype=torch.int64, device=device)
        """Position in its sequence of every token of the pass."""
        self.first_key: Tensor | None = None
        """How many of the columns that the pass sees are before each row's begin, int32; None where none is."""
        self._begins: list[int] = []
        self._end = 0
        self._seen = 0
        self._place: tuple = ()
        self._counts: Tensor | None = None
        self._rotation: tuple[Tensor, Tensor] | None = None
        self._slots: dict[int, int] = {}
        self._stored: Tensor | None = None

    def begin_prompts(self, lengths: Sequence[int]) -> None:
        """Begin a pass over sequences of these lengths, which become the last rows."""
        longest, row = max(lengths), len(self._begins)
        if longest > self._end:
            self._move(longest - self._end)
        self._begins += [self._end - length for length in lengths]
        self._counts = self._tensor(lengths)
        position = torch.arange(longest, device=self.device) - (longest - self._counts[:, None])
        rows, columns = (position >= 0).nonzero(as_tuple=True)
        self._place, self._rows = (rows + row, columns + self._end - longest), slice(row, len(self._begins))
        self._begin(position[rows, columns], self._end - longest)

    def begin_tokens(self) -> None:
        """Begin a pass over one more token of every row."""
        if self._end == self.columns:
            self._move(-min(self._begins))
        self._end += 1
        self._counts, self._rows = None, slice(len(self._begins))
        self._place = self._rows, self._end - 1
        self._begin(self._end - 1 - self._tensor(self._begins), min(self._begins))

    def _begin(self, positions: Tensor, seen: int) -> None:
        padding = [begin - seen for begin in self._begins[self._rows]]
        self.first_key = self._tensor(padding).int() if any(padding) else None
        self.positions, self._seen, self._rotation = positions, seen, None

    def rotate(self, part: Tensor, table: Tensor) -> Tensor:
        """Rotate queries or keys [T, heads, D] of the pass by the angles in `table` [positions, 1, 1, D]."""
        if self._rotation is None:  # the same for all layers
            angles = table[self.positions].squeeze(1)
            self._rotation = angles.cos().to(part.dtype), angles.sin().to(part.dtype)
        cos, sin = self._rotation
        first, second = part.chunk(2, -1)
        return part * cos + torch.cat((-second, first), -1) * sin

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remember `key` and `value` [T, groups, D]; returns those that the pass sees, [B, Sk, groups, D]."""
        if self._stored is None:  # zeros, because what a mask hides must still be finite
            _, groups, width = key.shape
            self._stored = key.new_zeros(self.layers, 2, self.rows, groups, self.columns, width)
        keys, values = self._stored[self._slots.setdefault(layer, len(self._slots))]  # a head's tokens lie together
        rows, columns = self._place
        keys[rows, :, columns], values[rows, :, columns] = key, value
        keys, values = (part[self._rows, :, self._seen : self._end].transpose(1, 2) for part in (keys, values))
        return keys, values

    def pad(self, part: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [B, Sq, ...], zeros where a row has not begun."""
        if self._counts is None:
            return part[:, None]
        padded = part.new_zeros(len(self._counts), self._end - self._seen, *part.shape[1:])
        padded[self._own()] = part
        return padded

    def unpad(self, part: Tensor) -> Tensor:
        """[B, Sq, ...] -> [T, ...]: the reverse of `pad`."""
        return part[:, 0] if self._counts is None else part[self._own()]

    def _own(self) -> tuple[Tensor, Tensor]:
        rows, columns = self._place
        return rows - self._rows.start, columns - self._seen

    def last(self, part: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [B, ...] of every row's last one."""
        return part if self._counts is None else part[self._counts.cumsum(0) - 1]

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Forget these rows; returns which row each of the others was before.

        Only as many rows are copied as leave a gap: the last ones fill it.
        """
        gone, kept = set(rows), len(self._begins) - len(rows)
        order = list(range(kept))
        movers = [row for row in range(kept, len(self._begins)) if row not in gone]
        gaps = [row for row in order if row in gone]
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            columns = slice(min(self._begins), self._end)
            gaps, movers = self._tensor(gaps), self._tensor(movers)
            self._stored[:, :, gaps, :, columns] = self._stored[:, :, movers, :, columns]
        self._begins = [self._begins[row] for row in order]
        return order

    def _move(self, by: int) -> None:
        """Move all rows to the right by so many columns, or to the left."""
        if self._begins:
            rows, first = len(self._begins), min(self._begins)
            old = self._stored[:, :, :rows, :, first : self._end].clone()
            self._stored[:, :, :rows, :, first + by : self._end + by] = old
        self._begins, self._end = [begin + by for begin in self._begins], self._end + by

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.device)
