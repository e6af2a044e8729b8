"""Geometry of shards, for loading a checkpoint in another layout.

A rank holds a part of a tensor: a box (tensor parallelism), or a flat range of a box in row-major order (the
distributed optimizer). Every flat range can be split into a few rectangles, each contiguous in the range. The elements
that two shards share are then the intersections of their rectangles.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

from megagpt.parallel.shards import Shape, ShardMetadata

CORNERS_LIMIT = 1 << 22
"""Most corners of boxes that are counted in order to check that a tensor is complete."""


@dataclass(frozen=True)
class Rectangle:
    """A box that is contiguous in a shard's data."""

    start: int
    """Index of its first element in the shard's data."""
    offset: Shape
    """First index on every axis of the global tensor."""
    shape: Shape
    """Size on every axis."""


def rectangles(place: ShardMetadata) -> list[Rectangle]:
    """Splits a shard into rectangles, in order; at most 2 x dimensions - 1 of them."""
    start, stop = place.range
    return [
        Rectangle(first - start, tuple(a + b for a, b in zip(place.offset, offset, strict=True)), shape)
        for first, offset, shape in _split(place.shape, start, stop)
    ]


def _split(shape: Shape, start: int, stop: int) -> Iterator[tuple[int, Shape, Shape]]:
    """Yields (first element, offset, shape) of the rectangles that form elements start..stop of a box."""
    if start >= stop:
        return
    if stop - start == prod(shape):
        yield start, (0,) * len(shape), shape
        return
    if len(shape) == 1:
        yield start, (start,), (stop - start,)
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows are first..last
    edges = [(start, min(stop, first * row))] if start < first * row else []
    if first < last:
        edges.append((first * row, last * row))
    if stop > last * row and first <= last:
        edges.append((last * row, stop))
    for a, b in edges:
        index = a // row
        if a % row == 0 and b % row == 0:
            yield a, (index, *(0,) * (len(shape) - 1)), ((b - a) // row, *shape[1:])
        else:
            for at, offset, size in _split(shape[1:], a - index * row, b - index * row):
                yield index * row + at, (index, *offset), (1, *size)


def intersection(a: Rectangle, b: Rectangle) -> tuple[Shape, Shape] | None:
    """Offset and shape of the intersection of two rectangles of one tensor; None when it is empty."""
    offset = tuple(max(x, y) for x, y in zip(a.offset, b.offset, strict=True))
    ends = (min(x + n, y + m) for x, n, y, m in zip(a.offset, a.shape, b.offset, b.shape, strict=True))
    shape = tuple(end - begin for begin, end in zip(offset, ends, strict=True))
    return (offset, shape) if all(n > 0 for n in shape) else None


def coverage_flaw(shards: Iterable[ShardMetadata]) -> str | None:
    """Description of the flaw if the shards of one tensor do not hold each element exactly once; None if they do.

    Each shard must be consistent by itself (`ShardMetadata.flaw`).
    """
    boxes: dict[tuple[Shape, Shape], list[ShardMetadata]] = {}
    for shard in shards:
        if shard.numel:
            boxes.setdefault((shard.offset, shard.shape), []).append(shard)
        global_shape = shard.global_shape
    merged = []  # adjacent shards of one box joined, so that few pieces are left
    for (offset, shape), members in boxes.items():
        members.sort(key=lambda shard: shard.range)
        joined = [members[0].range]
        for before, shard in pairwise(members):
            if shard.range[0] < before.range[1]:
                return f"{before.label} and {shard.label} overlap"
            if shard.range[0] == joined[-1][1]:
                joined[-1] = (joined[-1][0], shard.range[1])
            else:
                joined.append(shard.range)
        merged += [ShardMetadata(members[0].name, global_shape, offset, shape, flat) for flat in joined]
    held, wanted = sum(place.numel for place in merged), prod(global_shape)
    if held < wanted:
        return f"{wanted - held} of its {wanted} elements are missing"
    if len(merged) << len(global_shape) > CORNERS_LIMIT:
        return f"it is in {len(merged):,} pieces, too many to compare"
    return None if held == wanted and _tile(merged, global_shape) else "its pieces overlap"


def _tile(places: Iterable[ShardMetadata], shape: Shape) -> bool:
    """Whether every element of a tensor lies in exactly one of the places.

    The indicator function of a box is determined by its mixed differences, which are +1 or -1 at the box's corners and
    0 elsewhere. So the places tile the tensor exactly when their signed corners sum to those of the whole tensor. This
    needs no comparison of pairs.
    """
    corners: Counter[Shape] = Counter()

    def add(offset: Shape, size: Shape, weight: int) -> None:
        for upper in product((False, True), repeat=len(shape)):
            corner = tuple(o + n * end for o, n, end in zip(offset, size, upper, strict=True))
            corners[corner] += weight * (-1) ** sum(upper)

    for place in places:
        for box in rectangles(place):
            add(box.offset, box.shape, 1)
    add((0,) * len(shape), shape, -1)
    return not any(corners.values())
