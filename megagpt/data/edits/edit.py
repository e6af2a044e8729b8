"""One edit, and choices that are alike on every machine."""

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
    """The name that the tests call."""

    def record(self) -> dict[str, Any]:
        """As a line of a file; without what is not there."""
        return {name: value for name, value in vars(self).items() if value is not None}


class NotApplicableError(Exception):
    """This kind of edit changes nothing in this text."""


def pick(rng: random.Random, options: list) -> Any:
    """One of `options`. Raises NotApplicableError when there is none."""
    if not options:
        raise NotApplicableError
    return options[rng.randrange(len(options))]
