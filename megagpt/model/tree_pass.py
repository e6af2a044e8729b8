"""Forward passes over rows of a token tree, with the keys and values of stems kept in a pool of bounded size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megagpt.data.batch import send
from megagpt.model.kv_cache import CachedAttention, JointPass, Pass
from megagpt.model.token_tree import Row


class TokenPool:
    """Keys (already rotated) and values of tokens, for every layer of this rank. Each token has a slot."""

    def __init__(self, layers: int, size: int) -> None:
        """Room for `size` tokens in each of `layers` layers; memory is allocated at the first use."""
        self.layers, self.size = layers, size
        self._free = list(range(size))
        self._stored: Tensor | None = None  # [layers, 2, size, groups, D]
        self._numbers: dict[int, int] = {}  # layer number -> index in `_stored`

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def take(self, count: int) -> np.ndarray:
        """Reserve slots for `count` tokens; returns int64 [count]."""
        taken = np.array(self._free[self.free - count :], dtype=np.int64)
        del self._free[self.free - count :]
        return taken

    def give_back(self, slots: np.ndarray) -> None:
        """Free the slots of tokens that are no longer needed."""
        self._free += slots.tolist()

    def of_layer(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer by slot, [size, groups, D] each; `like`, [T, groups, D], gives D and the dtype."""
        if self._stored is None:  # zeros, because hidden keys must be finite too
            self._stored = like.new_zeros(self.layers, 2, self.size, *like.shape[1:])
        return self._stored[self._numbers.setdefault(layer, len(self._numbers))].unbind()


@dataclass(frozen=True)
class PlacedRow:
    """A row of a tree with the slots of its keys and values."""

    row: Row
    prefix: np.ndarray
    """int64 [row.start]: slots of the tokens before the row."""
    slots: np.ndarray
    """int64 [n]: slots for its own tokens if it is a stem; else empty."""


class TreePass:
    """One pass through the model over T tokens of B rows, concatenated without padding.

    Attention has two steps. Trunks use ordinary causal attention, so fast kernels can be used; branches need a mask.
    Inside attention the rows are padded to the longest: a row of keys is its prefix (padded on the left), its trunk
    (padded on the right) and its branches (padded on the right).
    """

    def __init__(self, pool: TokenPool, rows: Sequence[PlacedRow], asked: np.ndarray, device: torch.device) -> None:
        """asked: int64 [n], indices (among the T tokens) of the tokens whose final hidden states are wanted."""
        sizes = [len(placed.row.tokens) for placed in rows]
        trunks = [placed.row.trunk for placed in rows]
        starts = [placed.row.start for placed in rows]
        self.prefix, self.trunk = max(starts), max(trunks)
        self.branches = max(size - trunk for size, trunk in zip(sizes, trunks, strict=True))
        self.pool, self.device = pool, device
        self.positions = self._tensor(np.concatenate([placed.row.positions for placed in rows]))
        self._asked = self._tensor(asked)
        shape = len(rows), self.trunk + self.branches
        own, branch_ends = np.zeros(shape, dtype=np.int64), np.zeros((len(rows), self.branches), dtype=np.int64)
        filled, prefixes = np.zeros(shape, dtype=bool), np.zeros((len(rows), self.prefix), dtype=np.int64)
        first = 0
        for number, (placed, size, trunk) in enumerate(zip(rows, sizes, trunks, strict=True)):
            for begin, column, count in ((0, 0, trunk), (trunk, self.trunk, size - trunk)):
                own[number, column : column + count] = np.arange(first + begin, first + begin + count)
                filled[number, column : column + count] = True
            branch_ends[number, : size - trunk] = placed.row.ends
            prefixes[number, self.prefix - len(placed.prefix) :] = placed.prefix
            first += size
        self._own, self._filled, self._ends = self._tensor(own), filled, branch_ends
        self._full = self.branches == 0 and bool(filled.all())  # there is no padding
        # Place of each of the T tokens in the concatenation of the padded trunks and the padded branches.
        places = np.concatenate((filled[:, : self.trunk].ravel(), filled[:, self.trunk :].ravel())).nonzero()[0]
        padded = np.concatenate((own[:, : self.trunk].ravel(), own[:, self.trunk :].ravel()))[places]
        self._places = self._tensor(places[np.argsort(padded)])
        self._prefixes = self._tensor(prefixes)
        self._starts = self._tensor(np.array(starts))
        even = min(starts) == self.prefix
        self._first_key = None if even else (self.prefix - self._starts).int()
        stems = [
            (place, placed) for place, placed in zip(np.cumsum([0, *sizes]), rows, strict=False) if len(placed.slots)
        ]
        self._kept = None
        if stems:
            tokens = np.concatenate([np.arange(place, place + len(placed.slots)) for place, placed in stems])
            slots = np.concatenate([placed.slots for _, placed in stems])
            self._kept = self._tensor(tokens), self._tensor(slots)
        self._masks: dict[int | None, Tensor] = {}

    def last(self, values: Tensor) -> Tensor:
        """[T, ...] of the pass's tokens -> [n, ...] of the tokens asked for."""
        return values[self._asked]

    def attend(self, layer: int, attention: CachedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the stems' keys and values [T, groups, D]; returns attention of queries [T, heads, D], same shape."""
        keys, values = self._visible(layer, key, value)
        outs = []
        if self.trunk:
            seen = self.prefix + self.trunk
            q = self._padded(query, self._own[:, : self.trunk])
            outs.append(attention.cached(q, keys[:, :seen], values[:, :seen], self._first_key))
        if self.branches:
            q = self._padded(query, self._own[:, self.trunk :])
            outs.append(attention.cached(q, keys, values, mask=self._mask(attention.window)))
        if self._full:
            return outs[0].flatten(0, 1)
        return torch.cat([out.flatten(0, 1) for out in outs]).index_select(0, self._places)

    def _visible(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, prefix + trunk + branches, groups, D] of the rows."""
        pair = [self._padded(key, self._own), self._padded(value, self._own)]
        if self._kept is not None or self.prefix:
            for number, (held, new) in enumerate(zip(self.pool.of_layer(layer, key), (key, value), strict=True)):
                if self.prefix:
                    pair[number] = torch.cat((self._gather(held, self._prefixes), pair[number]), 1)
                if self._kept is not None:
                    tokens, slots = self._kept
                    held.index_copy_(0, slots, new.index_select(0, tokens))
        return pair[0], pair[1]

    def _padded(self, values: Tensor, places: Tensor) -> Tensor:
        """[T, ...] -> [B, width, ...]: the tokens at `places`, int64 [B, width]."""
        return values.view(*places.shape, *values.shape[1:]) if self._full else self._gather(values, places)

    @staticmethod
    def _gather(values: Tensor, places: Tensor) -> Tensor:
        return values.index_select(0, places.flatten()).view(*places.shape, *values.shape[1:])

    def _mask(self, window: int | None) -> Tensor:
        """Bool [B, 1, branches, prefix + trunk + branches], True where a token of a branch does not see a key."""
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor:
        own = torch.where(self._tensor(self._filled), self.positions[self._own], -1)
        before = self._starts[:, None] + torch.arange(-self.prefix, 0, device=self.device)  # padding is below 0
        keys, queries = torch.cat((before, own), 1)[:, None], own[:, self.trunk :, None]
        hidden = (keys < 0).repeat(1, self.branches, 1)
        number = torch.arange(self.branches, device=self.device)
        ancestor = (number <= number[:, None]) & (number[:, None] < self._tensor(self._ends)[:, None])
        hidden[:, :, self.prefix + self.trunk :] |= ~ancestor
        if window is not None:
            hidden |= queries - keys >= window
        return hidden[:, None]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return send(torch.from_numpy(values), self.device)


CachePass = Pass | JointPass | TreePass
"""A pass of one model call: over rows of KV caches, or over rows of a token tree."""
