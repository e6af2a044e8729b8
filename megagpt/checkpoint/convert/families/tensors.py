"""Layouts of megagpt's parameters in transformers' tensors: unchanged, transposed, in parts, or with reordered rows.

"Ours" are megagpt's parameters, "theirs" are transformers' tensors. All layouts are bit-exact, except a scale of
queries that is not a power of two.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.config.schema import ModelConfig


@dataclass(frozen=True)
class Part:
    """One of transformers' tensors that form one of our parameters."""

    name: str
    shape: tuple[int, ...]
    take: Callable[[Tensor], Tensor]
    """Computes their tensor from our whole parameter."""
    put: Callable[[Tensor, Tensor], None]
    """Writes their tensor (second argument) into our parameter (first)."""


@dataclass(frozen=True)
class Parameter:
    """One of our parameters."""

    kind: str
    """weight or bias"""
    layer: int | None
    """Number of its layer, counted from 0; None outside of the layers."""
    shape: tuple[int, ...]
    model: ModelConfig

    def named(self, template: str) -> str:
        """transformers' name of the tensor. template: name of the module, with {} in place of the layer's number."""
        return f"{template.format(self.layer)}.{self.kind}"


Layout = Callable[[Parameter], list[Part]]
"""Function that returns the parts of a parameter."""


def same(template: str) -> Layout:
    """Unchanged."""
    return lambda ours: [Part(ours.named(template), ours.shape, lambda tensor: tensor, _copy)]


def transposed(template: str) -> Layout:
    """Matrices are transposed, as in transformers' Conv1D."""

    def parts(ours: Parameter) -> list[Part]:
        if len(ours.shape) == 1:
            return same(template)(ours)
        return [Part(ours.named(template), ours.shape[::-1], Tensor.t, lambda mine, theirs: mine.copy_(theirs.t()))]

    return parts


def vocabulary(template: str) -> Layout:
    """Rows of the vocabulary without the padding, which is zero in our parameter."""
    return lambda ours: [_rows(ours.named(template), 0, ours.model.vocab_size, ours.shape)]


def positions(template: str, offset: int) -> Layout:
    """Rows of positions after `offset` unused rows, which are written as zeros."""

    def parts(ours: Parameter) -> list[Part]:
        shape = (ours.shape[0] + offset, *ours.shape[1:])
        before = (offset, *ours.shape[1:])
        return [
            Part(
                ours.named(template),
                shape,
                lambda tensor: torch.cat([tensor.new_zeros(before), tensor]),
                lambda mine, theirs: mine.copy_(theirs[offset:]),
            )
        ]

    return parts


def gate_and_up(gate: str, up: str) -> Layout:
    """The two projections of a gated activation as two tensors."""

    def parts(ours: Parameter) -> list[Part]:
        half = ours.shape[0] // 2
        return [_rows(ours.named(gate), 0, half, ours.shape), _rows(ours.named(up), half, half, ours.shape)]

    return parts


def separate_heads(
    template: str,
    has_bias: bool = True,
    query_scale: Callable[[ModelConfig], float] = lambda model: 1.0,
    interleaved: Callable[[ModelConfig], int] = lambda model: 0,
) -> Layout:
    """Queries, keys and values as three tensors. template: name with {part} in place of q, k and v.

    has_bias: whether the family has biases. query_scale: factor from our queries to theirs. interleaved: number of a
    head's first dimensions that are rotated in neighbouring pairs (i, i + 1); ours are pairs (i, i + half).
    """

    def parts(ours: Parameter) -> list[Part]:
        if ours.kind == "bias" and not has_bias:
            return []
        scale, turned = query_scale(ours.model), interleaved(ours.model)
        return [
            _head_rows(
                ours.named(template.replace("{part}", part)),
                part,
                ours,
                scale if part == "q" else 1.0,
                turned if part != "v" else 0,
            )
            for part in "qkv"
        ]

    return parts


def fused_heads(template: str, conv1d: bool = False) -> Layout:
    """One tensor with the queries of all heads, then the keys, then the values, as rows, or columns with `conv1d`."""

    def parts(ours: Parameter) -> list[Part]:
        rows = [_head_rows("", part, ours, 1.0, 0) for part in "qkv"]
        sizes = [part.shape[0] for part in rows]
        flip = conv1d and len(ours.shape) == 2

        def take(tensor: Tensor) -> Tensor:
            whole = torch.cat([part.take(tensor) for part in rows])
            return whole.t() if flip else whole

        def put(mine: Tensor, theirs: Tensor) -> None:
            for part, piece in zip(rows, (theirs.t() if flip else theirs).split(sizes), strict=True):
                part.put(mine, piece)

        return [Part(ours.named(template), ours.shape[::-1] if flip else ours.shape, take, put)]

    return parts


def _copy(ours: Tensor, theirs: Tensor) -> None:
    ours.copy_(theirs)


def _rows(name: str, start: int, count: int, shape: tuple[int, ...]) -> Part:
    """A part with rows [start, start + count) of our parameter."""
    rows = slice(start, start + count)
    return Part(name, (count, *shape[1:]), lambda ours: ours[rows], lambda ours, theirs: ours[rows].copy_(theirs))


def _heads(ours: Tensor, part: str, model: ModelConfig) -> Tensor:
    """View [groups, heads of a group, head size, ...] of the queries, keys or values in the fused projection."""
    per_group = model.num_attention_heads // model.query_groups
    grouped = ours.view(model.query_groups, per_group + 2, model.head_size, *ours.shape[1:])
    return grouped.split((per_group, 1, 1), dim=1)["qkv".index(part)]


def _head_rows(name: str, part: str, ours: Parameter, scale: float, interleaved: int) -> Part:
    """A part with the rows of all heads' q, k or v; theirs are ours times `scale`."""
    model, rest = ours.model, ours.shape[1:]
    heads = model.num_attention_heads if part == "q" else model.query_groups
    order = torch.arange(model.head_size)
    order[:interleaved] = order[:interleaved].view(2, -1).t().flatten()  # our dimensions in their order

    def take(tensor: Tensor) -> Tensor:
        rows = _heads(tensor, part, model)
        rows = rows[:, :, order] if interleaved else rows
        rows = rows.reshape(-1, *rest)
        return rows if scale == 1.0 else rows * scale

    def put(mine: Tensor, theirs: Tensor) -> None:
        place = _heads(mine, part, model)
        rows = (theirs if scale == 1.0 else theirs / scale).view(place.shape)
        place.copy_(rows[:, :, order.argsort()] if interleaved else rows)

    return Part(name, (heads * model.head_size, *rest), take, put)
