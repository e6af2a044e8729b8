"""Keys and values of ended sequences, for prompts that begin with the same tokens."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

LEAST_SHARED = 16
"""Tokens that two sequences must begin with alike for a copy to be worth more than it costs."""


def shared_tokens(first: np.ndarray, second: np.ndarray) -> int:
    """Number of tokens, int64 [n] each, that both begin with."""
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    return int(differ.argmax()) if differ.any() else length


class PrefixStore:
    """Sequences with their keys and values; the one that was asked for longest ago makes room for a new one."""

    def __init__(self, max_tokens: int) -> None:
        """Room for so many tokens in all."""
        self.max_tokens, self.tokens = max_tokens, 0
        self._kept: OrderedDict[int, tuple[np.ndarray, Tensor]] = OrderedDict()
        self._alike: dict[bytes, list[int]] = {}  # numbers of sequences by their first tokens
        self._number = 0

    def find(self, prompt: np.ndarray) -> tuple[int, Tensor | None]:
        """The most tokens that a sequence here shares with `prompt`, all but its last, and their keys and values.

        These are [layers, 2, groups, n, D]; 0 and None for fewer than LEAST_SHARED.
        """
        best, source = 0, None
        for number in self._alike.get(_head(prompt), ()):
            shared = shared_tokens(self._kept[number][0], prompt[:-1])
            if shared > best:
                best, source = shared, number
        if best < LEAST_SHARED:
            return 0, None
        self._kept.move_to_end(source)
        return best, self._kept[source][1][:, :, :, :best]

    def keep(self, tokens: Sequence[int], held: Tensor) -> None:
        """Keep a copy of the keys and values `held`, [layers, 2, groups, n, D], of a sequence of n tokens."""
        sequence = np.array(tokens, dtype=np.int64)
        if not LEAST_SHARED <= len(sequence) <= self.max_tokens:
            return
        for number in list(self._alike.get(_head(sequence), ())):
            other = self._kept[number][0]
            shared = shared_tokens(other, sequence)
            if shared == len(sequence):  # which says as much, or more
                self._kept.move_to_end(number)
                return
            if shared == len(other):
                self._forget(number)
        while self.tokens + len(sequence) > self.max_tokens:
            self._forget(next(iter(self._kept)))
        self._number += 1
        self._kept[self._number] = sequence, held.clone()
        self._alike.setdefault(_head(sequence), []).append(self._number)
        self.tokens += len(sequence)

    def _forget(self, number: int) -> None:
        sequence, _ = self._kept.pop(number)
        self.tokens -= len(sequence)
        alike = self._alike[_head(sequence)]
        alike.remove(number)
        if not alike:
            del self._alike[_head(sequence)]


def _head(tokens: np.ndarray) -> bytes:
    return tokens[:LEAST_SHARED].tobytes()
