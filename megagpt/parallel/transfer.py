"""Weights from one engine to another, whatever their layouts, through the network and not through files."""

import torch
import torch.distributed as dist

from megagpt.parallel.engine import Engine
from megagpt.parallel.pieces import Piece


@torch.no_grad()
def copy_weights(source: Engine, target: Engine) -> None:
    """Make the target's model equal the source's, to the last bit if the dtypes are one. Collective over all ranks.

    Every rank holds one whole tensor at a time: the largest is the embedding. Raises ValueError when the models differ.
    """
    given = _by_name(source, for_saving=True)
    wanted = _by_name(target, for_saving=False)
    everywhere: list = [None] * dist.get_world_size()
    mine = {name: pieces[0].global_shape for held in (given, wanted) for name, pieces in held.items()}
    dist.all_gather_object(everywhere, (mine, sorted(given), sorted(wanted)))
    shapes = {name: shape for shapes, _, _ in everywhere for name, shape in shapes.items()}
    sent, asked = ({name for entry in everywhere for name in entry[place]} for place in (1, 2))
    if sent != asked:
        raise ValueError(f"the models have different tensors, such as {sorted(sent ^ asked)[0]}")
    for name in sorted(sent):
        dtype = next(target.modules[0].parameters()).dtype
        whole = torch.zeros(shapes[name], dtype=dtype, device=target.device)
        for piece in given.get(name, ()):
            _write(whole, piece)
        if dist.get_world_size() > 1:
            dist.all_reduce(whole)  # of every element one rank has the value, all others 0
        for piece in wanted.get(name, ()):
            _read(whole, piece)


def _by_name(engine: Engine, for_saving: bool) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = {}
    for piece in engine.pieces(for_saving):
        if piece.name.startswith("model/"):
            found.setdefault(piece.name, []).append(piece)
    return found


def _box(whole: torch.Tensor, piece: Piece) -> torch.Tensor:
    """View of a piece's box in the whole tensor."""
    return whole[tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.shape, strict=True))]


def _write(whole: torch.Tensor, piece: Piece) -> None:
    box, (start, stop) = _box(whole, piece), piece.range
    if piece.flat is None:
        box.copy_(piece.data)
        return
    flat = box.flatten()  # another part of the box may be there already
    flat[start:stop] = piece.data.to(flat)
    box.copy_(flat.view(piece.shape))


def _read(whole: torch.Tensor, piece: Piece) -> None:
    start, stop = piece.range
    piece.data.copy_(_box(whole, piece).flatten()[start:stop].view(piece.data_shape))
