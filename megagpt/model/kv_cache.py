"""Keys and values of the tokens that went through the model, so that the next token costs one token's work."""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """What attention remembers of some sequences: for every layer of this rank, keys (already rotated) and values.

    A sequence is a row. All rows end at the same column, so a shorter one begins later. A pass reads either the prompts
    of new rows or one more token of every row: call `begin_prompts` or `begin_tokens`, then give the cache and these
    tokens, one after the other without padding, to all GPT chunks of the rank.
    """

    def __init__(self, layers: int, rows: int, columns: int, device: torch.device) -> None:
        """Room for `rows` sequences of up to `columns` tokens in each of `layers` layers."""
        self.layers, self.rows, self.columns, self.device = layers, rows, columns, device
        self.positions: Tensor
        """Position in its sequence of each token of the pass, int64 [T]."""
        self.first_key: Tensor | None
        """Number of columns before each row's begin, of those that the pass sees; int32 [B], None where all are 0."""
        self._begins: list[int] = []
        self._end = 0
        self._stored: Tensor | None = None  # [layers, 2, rows, groups, columns, D]: the tokens of a head lie together
        self._slots: dict[int, int] = {}  # where a layer is in it

    def begin_prompts(self, lengths: Sequence[int]) -> None:
        """Begin a pass over sequences of these lengths, none longer than those there, which become the last rows."""
        longest, old = max(lengths), len(self._begins)
        if not old:
            self._end = longest
        self._begins += [self._end - length for length in lengths]
        counts = self._tensor(lengths)
        positions = torch.arange(longest, device=self.device) - (longest - counts[:, None])
        self._padded = (positions >= 0).nonzero(as_tuple=True)
        self._last = counts.cumsum(0) - 1
        row, column = self._padded
        self._place = row + old, column + self._end - longest
        self._begin(positions[self._padded], slice(old, old + len(lengths)), self._end - longest)

    def begin_tokens(self) -> None:
        """Begin a pass over one more token of every row."""
        if self._end == self.columns:
            self._make_room()
        self._end += 1
        rows = slice(len(self._begins))
        self._padded, self._place = None, (rows, self._end - 1)
        self._begin(self._end - 1 - self._tensor(self._begins), rows, min(self._begins))

    def _begin(self, positions: Tensor, rows: slice, first: int) -> None:
        """Of the pass: positions of its tokens, its rows, the first column that it sees."""
        self.positions, self._rows, self._seen = positions, rows, slice(first, self._end)
        hidden = [begin - first for begin in self._begins[rows]]
        self.first_key = self._tensor(hidden).int() if any(hidden) else None
        self._rotation: tuple[Tensor, Tensor] | None = None

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
        if self._stored is None:  # zeros, because what is hidden must be finite all the same
            _, groups, width = key.shape
            self._stored = key.new_zeros(self.layers, 2, self.rows, groups, self.columns, width)
        keys, values = self._stored[self._slots.setdefault(layer, len(self._slots))].unbind()
        row, column = self._place
        keys[row, :, column], values[row, :, column] = key, value
        keys, values = (part[self._rows, :, self._seen].transpose(1, 2) for part in (keys, values))
        return keys, values

    def pad(self, part: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [B, Sq, ...], zeros before a row's begin."""
        if self._padded is None:
            return part[:, None]
        padded = part.new_zeros(len(self._last), self._seen.stop - self._seen.start, *part.shape[1:])
        padded[self._padded] = part
        return padded

    def unpad(self, part: Tensor) -> Tensor:
        """[B, Sq, ...] -> [T, ...]: the reverse of `pad`."""
        return part[:, 0] if self._padded is None else part[self._padded]

    def last(self, part: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [B, ...] of each row's last one."""
        return part if self._padded is None else part[self._last]

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Forget these rows; returns which row each of the others was. The last ones are copied to where gaps are."""
        gone, kept = set(rows), len(self._begins) - len(rows)
        gaps = [row for row in range(kept) if row in gone]
        movers = [row for row in range(kept, len(self._begins)) if row not in gone]
        order = list(range(kept))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            columns = slice(min(self._begins), self._end)
            gaps, movers = self._tensor(gaps), self._tensor(movers)
            self._stored[:, :, gaps, :, columns] = self._stored[:, :, movers, :, columns]
        self._begins = [self._begins[row] for row in order]
        return order

    def _make_room(self) -> None:
        """Move all rows to the left as far as it goes."""
        rows, first = slice(len(self._begins)), min(self._begins)
        self._stored[:, :, rows, :, : self._end - first] = self._stored[:, :, rows, :, first : self._end].clone()
        self._begins, self._end = [begin - first for begin in self._begins], self._end - first

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.device)
