"""Functions that the engines share."""

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel

from megagpt.model.parameters import Box
from megagpt.parallel.shards import Shard

MOMENTS = ("exp_avg", "exp_avg_sq")
"""PyTorch's names of Adam's state of a parameter."""

MOMENTUM = "momentum"
"""Name of Muon's state of a matrix."""


def sums_of(loss: torch.Tensor, count: torch.Tensor, metrics: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The result of `Objective.loss` for a micro-batch as one vector, float64 [2 + number of metrics]."""
    return torch.stack([value.detach().double() for value in (loss, count, *metrics)])


def means(
    sums: list[torch.Tensor], names: tuple[str, ...], device: torch.device, counts_here: bool, wishes_stop: bool
) -> tuple[float, int, dict[str, float], bool]:
    """Mean loss, count, means of the metrics, and whether to stop, over the micro-batches of all ranks. Collective.

    sums: a vector of `sums_of` for each micro-batch. names: names of the metrics. counts_here: whether this rank
    contributes; of ranks with the same results only one may. wishes_stop: whether this rank wishes the run to stop; the
    last value returned is whether any rank does. It is sent with the sums, so it needs no message of its own.
    """
    total = torch.zeros(3 + len(names), dtype=torch.float64, device=device)
    total[0] = float(wishes_stop)
    if sums and counts_here:
        total[1:] += torch.stack(sums).sum(0)
    dist.all_reduce(total)
    wishes, loss, count, *metrics = total.tolist()
    divisor = max(count, 1)
    found = {name: metric / divisor for name, metric in zip(names, metrics, strict=True)}
    return loss / divisor, int(count), found, wishes > 0


def split(name: str, data: torch.Tensor, span: tuple[int, int] | None, boxes: list[Box]) -> Iterator[Shard]:
    """Describe a rank's parameter, or the range `span` of it when flattened, as shards of the global tensor.

    data: the parameter, or its elements in `span` [stop - start]. boxes: the boxes that the parameter consists of, in
    order.
    """
    whole_size = sum(math.prod(box.shape) for box in boxes)
    start, end = span or (0, whole_size)
    data, position = data.view(-1), 0
    for box in boxes:
        size = math.prod(box.shape)
        first, last = max(start, position), min(end, position + size)
        if first < last:
            whole = last - first == size
            values = data[first - start : last - start]
            yield Shard(
                name,
                box.global_shape,
                box.offset,
                box.shape,
                None if whole else (first - position, last - position),
                values.view(box.shape) if whole else values,
            )
        position += size


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """See `Engine.random_state`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    tracked = tensor_parallel.get_cuda_rng_tracker().get_states()
    return state | {f"tracker.{name}": value for name, value in tracked.items()}


def set_random_state(device: torch.device, state: dict[str, torch.Tensor]) -> None:
    """See `Engine.set_random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
    tracked = {name.removeprefix("tracker."): value for name, value in state.items() if name.startswith("tracker.")}
    tensor_parallel.get_cuda_rng_tracker().set_states(tracked)
