"""Writes messages about values that do not fit the schema: one line per problem, with its key and the expected type."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from reprlib import repr as short
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from megagpt.config.nearest import nearest, nearest_key
from megagpt.config.renamed import RENAMED
from megagpt.config.schema import Config

DEPTH = 4
"""Number of parts of the longest path in the schema, such as data.corpora[0].path."""


def fields(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every key that can be set, sections included, as `section.key` -> its type."""
    found = {}
    for name, kind in get_type_hints(cls).items():
        found[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            found |= fields(kind, f"{prefix}{name}.")
    return found


def describe(kind: Any) -> str:
    """A field's type in words, for messages and for the help."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is tuple:
        each = describe(arguments[0])
        return f"a list of {each}" if arguments[1] is ... else f"a list of {len(arguments)}, each {each}"
    if dataclasses.is_dataclass(kind):
        names = _names(kind)
        return f"a mapping of {names}" if len(names) < 40 else "a mapping of keys to values"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    return words[kind]


def booleans_for_numbers(values: Any, location: tuple = ()) -> Iterator[str]:
    """A message for each boolean where the schema wants a number; pydantic would accept it as 0 or 1."""
    if isinstance(values, bool) and {int, float} & {(kind := _type_at(location)), *get_args(kind)}:
        yield f"{_dotted(location)}: expected {describe(kind)}, got {str(values).lower()}"
    if len(location) < DEPTH:
        children = values.items() if isinstance(values, Mapping) else enumerate(values) if is_list(values) else ()
        for key, child in children:
            yield from booleans_for_numbers(child, (*location, key))


def explain(detail: Mapping[str, Any]) -> Iterator[str]:
    """Lines for one of pydantic's error details."""
    location, given, problem = detail["loc"], detail["input"], detail["type"]
    if problem in ("unexpected_keyword_argument", "invalid_key"):
        children = given if isinstance(given, Mapping) and len(location) == 1 else ()
        yield from (_unknown_key((*location, *rest)) for rest in [(child,) for child in children] or [()])
        return
    if problem in ("too_long", "too_short", "missing") and isinstance(location[-1], int):
        location = location[:-1]  # the list's length is wrong, not one of its items
    kind, key = _type_at(location), _dotted(location) or "the configuration"
    if problem == "missing" and not is_list(given):
        yield f"{key}: missing; expected {describe(kind)}"
        return
    shown = {True: "true", False: "false", None: "null"}[given] if _is_constant(given) else short(given)
    message = f"{key}: expected {describe(kind)}, got {shown}"
    if problem == "finite_number":
        message += ", which is not finite"
    elif isinstance(given, bool):
        message += " (YAML reads a bare on, off, yes or no as true or false: put it in quotes)"
    elif problem == "string_type" and isinstance(given, int | float):
        message += " (it was read as a number: put it in quotes)"
    elif get_origin(kind) is Literal and (close := nearest(str(given), list(map(str, get_args(kind))))):
        message += f"; did you mean {close}?"
    yield message


def _unknown_key(location: tuple) -> str:
    """The message for a key that is not in the schema, with the most similar key."""
    key, last = _dotted(location), str(location[-1])
    section = _section(_type_at(location[:-1]))
    name, section = (_dotted(location[:-1]), section) if section and location[:-1] else ("a configuration", Config)
    if last.startswith("_") and last.endswith("_"):
        return f"{key}: refused: a configuration cannot name code to run"
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}"
    here = [f"{name}.{field.name}" for field in dataclasses.fields(section)]
    if not any(isinstance(part, int) for part in location) and (close := nearest_key(key, [*fields(), *here])):
        return f"{key}: no such key; did you mean {close}?"
    return f"{key}: no such key; the keys of {name} are {_names(section)}"


def _names(section: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(section))


def _type_at(location: tuple) -> Any:
    """The schema's type at a path of keys and list indices; None when there is no such field."""
    kind: Any = Config
    for part in location:
        if section := _section(kind):
            kind = get_type_hints(section).get(part)
        elif get_origin(kind) is tuple and isinstance(part, int):
            kind = get_args(kind)[0]
        else:
            return None
    return kind


def _section(kind: Any) -> type | None:
    """The dataclass of a field whose type is a dataclass or `dataclass | None`; None for other fields."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return next(filter(dataclasses.is_dataclass, kinds), None)


def _dotted(location: tuple) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def is_list(value: Any) -> bool:
    """Whether a value is a YAML list: a list before validation, a tuple after it."""
    return isinstance(value, list | tuple)


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool)
