"""A radix tree of many token sequences, in which each shared prefix occurs once, cut into rows for forward passes.

A node holds the tokens up to the place where sequences differ. A row is the unit that a forward pass computes: the
tokens of a node (its trunk) and, if these are few, of all nodes below it (its branches). If they are many, the row is
only the trunk. Such a row is called a stem; its keys and values are kept for the rows that continue it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

BRANCHES = 256
"""Most tokens in the branches of a row. Attention compares each with all of them, also with those it does not see."""


@dataclass(slots=True)
class Ask:
    """Consecutive tokens of a row that must predict a sequence's next tokens."""

    offset: int
    """Index of the first one in the row."""
    count: int
    """Number of tokens."""
    sequence: int
    """Index of the sequence."""
    depth: int
    """Position of the first token in the sequence."""


@dataclass(slots=True)
class Row:
    """Tokens that are computed together, after those of the row that it continues.

    First come the tokens of the trunk, in their order; then those of the branches, depth first.
    """

    parent: int
    """Number of the row whose last token it continues; -1 for none."""
    start: int
    """Position of its first token, which is the number of tokens before the row."""
    trunk: int
    """Number of tokens in the trunk."""
    tokens: np.ndarray
    """int64 [n]"""
    positions: np.ndarray
    """int64 [n]: position of each token in its sequences."""
    ends: np.ndarray
    """int64 [n - trunk]: end of each branch token's descendants; token i's are i + 1 .. ends[i] - 1 of the branches."""
    asks: list[Ask] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    """Numbers of the rows that continue this one; if there are any, the row is a stem."""


@dataclass(slots=True, eq=False)
class _Node:
    begin: int  # position of its first token
    end: int  # position after its last token
    sequence: int  # number of a sequence that has these tokens
    parent: "_Node | None" = None
    children: list["_Node"] = field(default_factory=list)
    below: int = 0  # number of tokens in all nodes below it
    row: int = -1
    offset: int = 0  # index of its first token in its row

    @property
    def size(self) -> int:
        """Number of its own tokens and those below it."""
        return self.end - self.begin + self.below


def token_rows(sequences: Sequence[np.ndarray], asked: Sequence[int]) -> list[Row]:
    """The tree of `sequences` (int [length], at least one token each) as rows, depth first.

    asked: for each sequence, the number of its last tokens that must predict their next token.
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
    """The root, which has no tokens, and for each sequence the node whose last token is the sequence's last."""
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]  # big-endian bytes sort like the sequences
    order = sorted(range(len(keys)), key=keys.__getitem__)
    root = _Node(0, 0, -1)
    path, last_nodes, nodes = [root], [root] * len(keys), []
    for before, number in zip([None, *order], order, strict=False):
        sequence = sequences[number]
        shared = 0 if before is None else _shared(sequences[before], sequence)
        if before is not None and shared == len(sequence):  # the two are equal, because longer ones come later
            last_nodes[number] = last_nodes[before]
            continue
        while path[-1].end > shared:
            left = path.pop()
        if path[-1].end < shared:  # the sequences differ inside `left`, which is cut in two
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
    """Length of the longest common prefix."""
    length = min(len(left), len(right))
    different = left[:length] != right[:length]
    first = int(different.argmax())
    return first if different[first] else length


def _groups(stem: _Node) -> list[list[_Node]]:
    """The children of a stem, in groups that become one row each.

    Small nodes share a row, so that the keys and values before them are gathered once; but together they have at most
    as many tokens as the prefix that they share.
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
    """Append a row for `nodes` and the nodes below them; if it is a stem, returns the last node of its trunk."""
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
