"""Values of fields by their dotted names, and the wording of messages about them."""

from collections.abc import Iterator
from functools import reduce
from typing import Any

from megagpt.config.schema import Config


def get(config: Config, name: str) -> Any:
    """Value of the field at a dotted name."""
    return reduce(getattr, name.split("."), config)


def data_parallel_size(config: Config, world_size: int) -> int:
    """Number of whole replicas; 1 when not even one fits (`world_size_fits` reports that)."""
    return max(1, world_size // (config.parallel.tensor_parallel_size * config.parallel.pipeline_parallel_size))


def multiple(config: Config, whole: str, part: str) -> Iterator[str]:
    """A message unless field `whole` is a multiple of field `part`."""
    value, divisor = get(config, whole), get(config, part)
    if value % divisor:
        yield f"{whole} ({value}) is not a multiple of {part} ({divisor}): {nearest_multiples(value, divisor)}"


def nearest_multiples(value: int, divisor: int) -> str:
    """Advice for a value that is not a multiple of `divisor`."""
    below = value // divisor * divisor
    return f"set it to {f'{below} or ' if below > 0 else ''}{below + divisor}, or change the other"
