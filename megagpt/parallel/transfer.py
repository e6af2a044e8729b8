"""Copies weights between two engines of any layouts, over the network."""

import torch
import torch.distributed as dist

from megagpt.parallel.engine import Engine
from megagpt.parallel.shards import Shard


@torch.no_grad()
def copy_weights(source: Engine, target: Engine) -> None:
    """Copy the source's weights to the target, bit for bit if the dtypes are equal. Collective over all ranks.

    Every rank holds one whole tensor at a time; the largest is the embedding. Raises ValueError when the models have
    different tensors.
    """
    given = _by_name(source, for_saving=True)
    wanted = _by_name(target, for_saving=False)
    everywhere: list = [None] * dist.get_world_size()
    mine = {name: shards[0].global_shape for held in (given, wanted) for name, shards in held.items()}
    dist.all_gather_object(everywhere, (mine, sorted(given), sorted(wanted)))
    shapes = {name: shape for shapes, _, _ in everywhere for name, shape in shapes.items()}
    sent, asked = ({name for entry in everywhere for name in entry[place]} for place in (1, 2))
    if sent != asked:
        raise ValueError(f"the models have different tensors, such as {sorted(sent ^ asked)[0]}")
    for name in sorted(sent):
        dtype = next(target.modules[0].parameters()).dtype
        whole = torch.zeros(shapes[name], dtype=dtype, device=target.device)
        for shard in given.get(name, ()):
            _write(whole, shard)
        if dist.get_world_size() > 1:
            dist.all_reduce(whole)  # for each element, one rank has the value and all others have 0
        for shard in wanted.get(name, ()):
            _read(whole, shard)


def _by_name(engine: Engine, for_saving: bool) -> dict[str, list[Shard]]:
    found: dict[str, list[Shard]] = {}
    for shard in engine.shards(for_saving):
        if shard.name.startswith("model/"):
            found.setdefault(shard.name, []).append(shard)
    return found


def _box(whole: torch.Tensor, shard: Shard) -> torch.Tensor:
    """View of a shard's box in the whole tensor."""
    return whole[tuple(slice(o, o + n) for o, n in zip(shard.offset, shard.shape, strict=True))]


def _write(whole: torch.Tensor, shard: Shard) -> None:
    box, (start, stop) = _box(whole, shard), shard.range
    if shard.flat is None:
        box.copy_(shard.data)
        return
    flat = box.flatten()  # a copy, with the parts of the box that are written already
    flat[start:stop] = shard.data.to(flat)
    box.copy_(flat.view(shard.shape))


def _read(whole: torch.Tensor, shard: Shard) -> None:
    start, stop = shard.range
    shard.data.copy_(_box(whole, shard).flatten()[start:stop].view(shard.data_shape))
