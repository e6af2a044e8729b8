"""Shards: the parts of tensors that ranks hold, described in the same way for every layout and engine."""

from dataclasses import dataclass
from math import prod
from typing import Self

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShardMetadata:
    """Position of a shard: elements `flat` of the box at `offset` with size `shape` in a tensor of `global_shape`."""

    name: str
    """Engine-neutral name of the tensor, such as model/decoder.layers.3.mlp.linear_fc1.weight."""
    global_shape: Shape
    """Shape of the whole tensor."""
    offset: Shape
    """First index of the box on every axis."""
    shape: Shape
    """Size of the box on every axis."""
    flat: tuple[int, int] | None
    """Half-open range of the box's elements in row-major order; None means all of them."""

    @property
    def range(self) -> tuple[int, int]:
        """The half-open range of the box's elements that this shard holds."""
        return self.flat if self.flat is not None else (0, prod(self.shape))

    @property
    def numel(self) -> int:
        """Number of elements."""
        start, stop = self.range
        return stop - start

    @property
    def data_shape(self) -> Shape:
        """Shape of the data: the box's, or [numel] for a flat range."""
        return self.shape if self.flat is None else (self.numel,)

    @property
    def label(self) -> str:
        """The name; if the shard is not the whole tensor, with the box and the flat range in brackets."""
        box = ""
        if self.shape != self.global_shape:
            box = ",".join(f"{o}:{o + n}" for o, n in zip(self.offset, self.shape, strict=True))
        flat = "" if self.flat is None else f";{self.flat[0]}:{self.flat[1]}"
        return f"{self.name}[{box}{flat}]" if box or flat else self.name

    def flaw(self) -> str | None:
        """Description of an inconsistency of offset, shape and flat range; None if they are consistent."""
        if not len(self.global_shape) == len(self.offset) == len(self.shape):
            return f"global shape {self.global_shape}, offset {self.offset} and shape {self.shape} differ in length"
        for size, offset, length in zip(self.global_shape, self.offset, self.shape, strict=True):
            if offset < 0 or length < 0 or offset + length > size:
                return f"box {self.offset} + {self.shape} leaves the tensor {self.global_shape}"
        if not 0 <= self.range[0] <= self.range[1] <= prod(self.shape):
            return f"flat range {self.flat} leaves the box {self.shape}"
        return None


@dataclass(frozen=True)
class Shard(ShardMetadata):
    """A part of a tensor with its data; the data is saved, or filled in place from a checkpoint."""

    data: torch.Tensor
    """Tensor with the shape of the box, or the flat range, 1-D and contiguous."""

    @classmethod
    def whole(cls, name: str, data: torch.Tensor) -> Self:
        """The shard that holds the whole tensor `data`."""
        shape = tuple(data.shape)
        return cls(name, shape, (0,) * len(shape), shape, None, data)

    def flaw(self) -> str | None:
        """Description of an inconsistency in the metadata, or between metadata and data; None if there is none."""
        if tuple(self.data.shape) != self.data_shape:
            return f"data of shape {tuple(self.data.shape)} where {self.data_shape} was declared"
        if self.flat is not None and not self.data.is_contiguous():
            return "the data of a flat range must be contiguous"
        return super().flaw()
