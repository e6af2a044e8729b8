"""A function of any language: the result of the parsers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """A function or method and its docstring."""

    name: str
    line: int
    """Number of its first line in the file, from 1."""
    docstring: str
    """Its docstring, or the comment above it, without marks; empty if there is none."""
    code: str | None
    """Its source without the docstring; None if the two cannot be separated."""
    trivial: bool
    """Whether its body is trivial: empty, a getter, a setter, or only raises an error."""
