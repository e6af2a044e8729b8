"""Keys and values of finished sequences, for prompts that begin with the same tokens."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

LEAST_SHARED = 16
"""Least number of shared first tokens for which copying keys and values is worth its cost."""


def shared_tokens(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the longest common prefix of two sequences, int64 [n] each."""
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    return int(differ.argmax()) if differ.any() else length


class PrefixStore:
    """Sequences with their keys and values; the least recently used one makes room for a new one."""

    def __init__(self, max_tokens: int) -> None:
        """Room for `max_tokens` tokens in total."""
        self.max_tokens, self.tokens = max_tokens, 0
        self._kept: OrderedDict[int, tuple[np.ndarray, Tensor]] = OrderedDict()
        self._alike: dict[bytes, list[int]] = {}  # first LEAST_SHARED tokens -> numbers of the sequences
        self._number = 0

    def find(self, prompt: np.ndarray) -> tuple[int, Tensor | None]:
        """The longest stored prefix of `prompt` without its last token: its length n, and its keys and values.

        Keys and values are [layers, 2, groups, n, D]. (0, None) if n would be below LEAST_SHARED.
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
        """Store a copy of `held`, the keys and values [layers, 2, groups, n, D] of a sequence of n tokens."""
        sequence = np.array(tokens, dtype=np.int64)
        if not LEAST_SHARED <= len(sequence) <= self.max_tokens:
            return
        for number in list(self._alike.get(_head(sequence), ())):
            other = self._kept[number][0]
            shared = shared_tokens(other, sequence)
            if shared == len(sequence):  # a stored sequence contains this one
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
