"""Many token sequences as one tree, in which each prefix that some of them share stands once, cut into rows to compute.

The tree is a radix tree: a node holds the tokens up to where sequences part. A row is what a forward pass computes as
one: the tokens of a node (its trunk) and of all below it (its branches), where those are few. Where they are many, the
row is the trunk alone: a stem, whose keys and values are kept for the rows that go on from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

BRANCHES = 256
"""Tokens that branch off in a row at most. Each is compared with all of them, also with those of other branches."""


@dataclass(slots=True)
class Ask:
    """Tokens of a row after each of which a sequence's next token is asked for."""

    offset: int
    """Number of the first one within the row."""
    count: int
    sequence: int
    """Number of the sequence among those given."""
    depth: int
    """Position of the first one in the sequence."""


@dataclass(slots=True)
class Row:
    """Tokens that are computed as one, after those of the rows that it goes on from.

    First come those of the trunk, each after the one before; then those of the branches, depth first.
    """

    parent: int
    """Number of the row that it goes on from, at that row's last token; -1 for none."""
    start: int
    """Position of its first token, which is the number of tokens before it."""
    trunk: int
    """Tokens of the trunk."""
    tokens: np.ndarray
    """int64 [n]"""
    positions: np.ndarray
    """int64 [n]: position of each token in its sequences."""
    ends: np.ndarray
    """int64 [n - trunk]: number (among the branches' tokens) after that of each branch token's last descendant."""
    asks: list[Ask] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    """Numbers of the rows that go on from it: if there are any, it is a stem."""


@dataclass(slots=True, eq=False)
class _Node:
    begin: int  # first position of its tokens, and the one after the last
    end: int
    sequence: int  # number of one that has these tokens
    parent: "_Node | None" = None
    children: list["_Node"] = field(default_factory=list)
    below: int = 0  # tokens of all nodes below it
    row: int = -1
    offset: int = 0  # of its first token in its row

    @property
    def size(self) -> int:
        """Its own tokens and those below it."""
        return self.end - self.begin + self.below


def token_rows(sequences: Sequence[np.ndarray], asked: Sequence[int]) -> list[Row]:
    """The tree of `sequences` (int [length], at least one token each) as rows, depth first.

    asked: of each sequence, the number of last tokens after which the next one is asked for.
    """
    root, last_nodes = _radix_tree(sequences)
    rows: list[Row] = []
    waiting = [(-1, group) for group in _groups(root)]
    while waiting:
        parent, nodes = waiting.pop()
        stem = _add_row(rows, parent, nodes, sequences)
        if stem is not None:
            waiting += [(len(rows) - 1, group) for group in _groups(stem)]
    for number, node in enumerate(last_nodes):
        first, end = len(sequences[number]) - asked[number], len(sequences[number])
        while end > first:
            begin = max(node.begin, first)
            rows[node.row].asks.append(Ask(node.offset + begin - node.begin, end - begin, number, begin))
            node, end = node.parent, begin
    return rows


def _radix_tree(sequences: Sequence[np.ndarray]) -> tuple[_Node, list[_Node]]:
    """The root, which has no tokens, and the node in which each sequence ends, at that node's last token."""
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]  # compare as the sequences do
    order = sorted(range(len(keys)), key=keys.__getitem__)
    root = _Node(0, 0, -1)
    path, last_nodes, nodes = [root], [root] * len(keys), []
    for before, number in zip([None, *order], order, strict=False):
        sequence = sequences[number]
        shared = 0 if before is None else _shared(sequences[before], sequence)
        if before is not None and shared == len(sequence):  # in this order, only an equal one
            last_nodes[number] = last_nodes[before]
            continue
        while path[-1].end > shared:
            left = path.pop()
        if path[-1].end < shared:  # they part within `left`, which is cut in two
            upper = _Node(left.begin, shared, left.sequence, path[-1], [left])
            path[-1].children[-1] = upper
            left.begin, left.parent = shared, upper
            path.append(upper)
            nodes.append(upper)
        last_nodes[number] = _Node(shared, len(sequence), number, path[-1])
        path[-1].children.append(last_nodes[number])
        path.append(last_nodes[number])
        nodes.append(last_nodes[number])
    for node in sorted(nodes, key=lambda node: -node.begin):  # children before parents
        node.parent.below += node.size
    return root, last_nodes


def _shared(left: np.ndarray, right: np.ndarray) -> int:
    """Number of tokens with which both begin."""
    length = min(len(left), len(right))
    different = left[:length] != right[:length]
    first = int(different.argmax())
    return first if different[first] else length


def _groups(stem: _Node) -> list[list[_Node]]:
    """The nodes that go on from a stem in groups that become one row each.

    Small ones share a row, and with it the work of bringing the keys and values before them to it, but are not more
    together than what they share.
    """
    limit, groups, filled = min(BRANCHES, stem.end), [], 0
    small = [node for node in stem.children if node.size <= limit]
    for node in small:
        if not groups or filled + node.size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(node)
        filled += node.size
    return [[node] for node in stem.children if node.size > limit] + groups


def _add_row(rows: list[Row], parent: int, nodes: list[_Node], sequences: Sequence[np.ndarray]) -> _Node | None:
    """Make a row of the nodes and those below them; returns the last one of a trunk that has too many below it."""
    trunk = [nodes[0]] if len(nodes) == 1 else []
    while trunk and len(trunk[-1].children) == 1:
        trunk += trunk[-1].children
    stem = trunk[-1] if trunk and trunk[-1].below > BRANCHES else None
    branches, waiting = [], [] if stem is not None else list(trunk[-1].children if trunk else nodes)
    while waiting:
        branches.append(waiting.pop())
        waiting += branches[-1].children
    offset = 0
    for node in trunk + branches:
        node.row, node.offset = len(rows), offset
        offset += node.end - node.begin
    length = sum(node.end - node.begin for node in trunk)
    ends = [node.offset - length + node.size for node in branches for _ in range(node.begin, node.end)]
    rows.append(
        Row(
            parent=parent,
            start=nodes[0].begin,
            trunk=length,
            tokens=np.concatenate([sequences[node.sequence][node.begin : node.end] for node in trunk + branches]),
            positions=np.concatenate([np.arange(node.begin, node.end) for node in trunk + branches]),
            ends=np.array(ends, dtype=np.int64),
        )
    )
    if parent >= 0:
        rows[parent].children.append(len(rows) - 1)
    return stem
