"""An edit, and a random choice that is the same on every machine."""

import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Edit:
    """A user's request and the right response."""

    kind: str
    instruction: str
    input: str
    output: str
    tests: str | None = None
    """Python source that passes with the output and fails with the input."""
    function: str | None = None
    """Name of the function that the tests call."""

    def record(self) -> dict[str, Any]:
        """The edit as an object for JSON, without fields that are None."""
        return {name: value for name, value in vars(self).items() if value is not None}


class NotApplicableError(Exception):
    """This kind of edit would change nothing in this text."""


def pick(rng: random.Random, options: list) -> Any:
    """A random element of `options`. Raises NotApplicableError if they are empty."""
    if not options:
        raise NotApplicableError
    return options[rng.randrange(len(options))]
