"""The geometry that moves shards of tensors from one layout to another.

A rank holds part of a tensor: a box of it (tensor parallelism), or a flat range of such a box read in row-major order
(the distributed optimizer). Every flat range splits into a few rectangles, each contiguous in the range, so that any
two shards, however each was cut, share the intersections of their rectangles and nothing else.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import prod

from megagpt.parallel.shards import Shape, ShardMetadata


@dataclass(frozen=True)
class Rectangle:
    """A box that is contiguous in a shard's data."""

    start: int
    """Its first element, counted from the shard's first."""
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
    """Yields (first element, offset, shape) of the rectangles that make up elements start..stop of a box."""
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
    """Offset and shape of what two rectangles of one tensor share; None when that is nothing."""
    offset = tuple(max(x, y) for x, y in zip(a.offset, b.offset, strict=True))
    ends = (min(x + n, y + m) for x, n, y, m in zip(a.offset, a.shape, b.offset, b.shape, strict=True))
    shape = tuple(end - begin for begin, end in zip(offset, ends, strict=True))
    return (offset, shape) if all(n > 0 for n in shape) else None


def overlap(a: ShardMetadata, b: ShardMetadata) -> bool:
    """Whether two shards of one tensor share an element."""
    return any(intersection(x, y) for x in rectangles(a) for y in rectangles(b))


def coverage_flaw(shards: Iterable[ShardMetadata]) -> str | None:
    """Checks that consistent shards of one tensor hold each of its elements exactly once; says what is wrong, if so."""
    boxes: dict[tuple[Shape, Shape], list[ShardMetadata]] = {}
    for shard in shards:
        if shard.numel:
            boxes.setdefault((shard.offset, shard.shape), []).append(shard)
        global_shape = shard.global_shape
    merged = []  # shards of one box, sorted and joined where they touch, so that few pairs are left to compare
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
    for a, b in combinations(merged, 2):
        if overlap(a, b):
            return f"{a.label} and {b.label} overlap"
    held, wanted = sum(place.numel for place in merged), prod(global_shape)
    return f"{wanted - held} of its {wanted} elements are missing" if held != wanted else None
