"""A function of any language, as the parsers give it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """A function or method with what is said about it."""

    name: str
    line: int
    """Where it begins in the file, from 1."""
    docstring: str
    """Its docstring, or the comment above it, without marks; empty where there is none."""
    code: str | None
    """Its source without the docstring; None where the two cannot be told apart."""
    trivial: bool
    """Whether its body does nothing worth a search: empty, a getter, a setter, a refusal."""
