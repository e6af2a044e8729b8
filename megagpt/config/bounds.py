"""Ranges of numbers as part of a field's type. `rules.ranges` checks every number of a configuration against them.

Pydantic's own bounds are not used: they would refuse a value while the file is read, so that one error could not list
the violations of the other rules too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """A range of numbers: its wording in messages, and a predicate."""

    words: str
    holds: Callable[[float], bool]


LARGEST_SEED = 2**32 - 1

POSITIVE = Range("must be above 0", lambda value: value > 0)
NON_NEGATIVE = Range("must not be negative", lambda value: value >= 0)
FRACTION = Range("must be between 0 and 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Range("must be at least 0 and below 1", lambda value: 0 <= value < 1)
UP_TO_LARGEST_SEED = Range(f"must be at most {LARGEST_SEED}", lambda value: value <= LARGEST_SEED)

PositiveInt = Annotated[int, POSITIVE]
PositiveFloat = Annotated[float, POSITIVE]
NonNegativeInt = Annotated[int, NON_NEGATIVE]
NonNegativeFloat = Annotated[float, NON_NEGATIVE]
Fraction = Annotated[float, FRACTION]
PositiveFraction = Annotated[float, POSITIVE, FRACTION]
FractionBelowOne = Annotated[float, BELOW_ONE]
Seed = Annotated[int, NON_NEGATIVE, UP_TO_LARGEST_SEED]


def ranges_of(kind: Any) -> list[Range]:
    """The ranges in a type such as `PositiveInt | None`."""
    if get_origin(kind) is Annotated:
        return [part for part in kind.__metadata__ if isinstance(part, Range)]
    return [found for part in get_args(kind) for found in ranges_of(part)]


def out_of_range(section: Any, prefix: str = "") -> Iterator[str]:
    """A message for every number in a section of the configuration that is outside its range.

    prefix: beginning of the section's keys, such as "optim.".
    """
    for name, kind in get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, name)
        if is_dataclass(value):
            yield from out_of_range(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            for limit in ranges_of(kind):
                if not limit.holds(value):
                    yield f"{prefix}{name} ({value}) {limit.words}"
