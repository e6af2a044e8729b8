"""How a rank describes what it holds of a tensor, whatever the layout and the engine."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Piece:
    """Part of a global tensor: a box of it or, where an optimizer shards flat, a range of the flattened box."""

    name: str
    """Name of the global tensor, the same in every layout and engine."""
    global_shape: tuple[int, ...]
    """Shape of the global tensor."""
    offset: tuple[int, ...]
    """Where the box starts in the global tensor."""
    shape: tuple[int, ...]
    """Shape of the box."""
    flat: tuple[int, int] | None
    """First and one-past-last element of the flattened box that are held here; None: all of it."""
    data: torch.Tensor
    """The elements: of `shape`, or one-dimensional when `flat` is given. Loading fills it in place."""
