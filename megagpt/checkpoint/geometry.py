"""The geometry that moves shards of tensors from one layout to another.

A rank holds part of a tensor: a box of it (tensor parallelism), or a flat range of such a box read in row-major order
(the distributed optimizer). Every flat range splits into a few rectangles, each contiguous in the range, so that any
two shards, however each was cut, share the intersections of their rectangles and nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

from megagpt.parallel.shards import Shape, ShardMetadata

CORNERS_LIMIT = 1 << 22
"""Most corners of boxes that are looked at to see whether a tensor is whole."""


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
    held, wanted = sum(place.numel for place in merged), prod(global_shape)
    if held < wanted:
        return f"{wanted - held} of its {wanted} elements are missing"
    if len(merged) << len(global_shape) > CORNERS_LIMIT:
        return f"it is in {len(merged):,} pieces, too many to compare"
    return None if held == wanted and _tile(merged, global_shape) else "its pieces overlap"


def _tile(places: Iterable[ShardMetadata], shape: Shape) -> bool:
    """Whether every element of a tensor lies in exactly one of the places.

    A box adds 1 to its elements: a sum of mixed differences, which are +1 or -1 at its corners and 0 elsewhere. Places
    add up to the whole tensor exactly when their corners do. No pair of them has to be compared.
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
