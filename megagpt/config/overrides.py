"""Reads `key=value` on a command line, in Hydra's grammar: for the configuration, and for smaller sets of keys."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from pydantic import TypeAdapter, ValidationError

from megagpt.config.home import at_home
from megagpt.config.nearest import nearest
from megagpt.errors import ConfigError

Settings = TypeVar("Settings")

TEXT = (str, str | None, Path, Path | None)
"""Types of fields whose values are taken as typed."""


def parse(text: str) -> Override:
    """One override. Raises ConfigError for what is none."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, equals, value = text.partition("=")
        advice = str(error).splitlines()[-1] if equals else f"write {key[:100]}=VALUE"
        if value.startswith(("[", "{")):
            advice += """; text with other signs than letters, digits, '/', '.', '_' and '-' stands in quotes"""
        raise ConfigError(f"{text[:200]!r} cannot be read as an override: {advice}") from None


def quote_text(text: str) -> str:
    """An override of a field that holds text, with its value in quotes: it arrives as it was typed.

    Without, Hydra makes 202411 of 2024_11, and cannot read a path with `=` or a comma in it. What has quotes already
    stays, and so do null, lists and mappings.
    """
    key, equals, value = text.partition("=")
    if not equals or value == "null" or value.startswith(("'", '"', "[", "{")):
        return text
    value = value.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"{key}='{value}{chr(92) if value.endswith(chr(92)) else ''}'"


def build(kind: type[Settings], overrides: list[str]) -> Settings:
    """A dataclass with the values that `overrides` give; a single value stands for a list of one.

    Raises ConfigError for an unknown key, one that is missing or given twice, or a wrong value.
    """
    known, given = get_type_hints(kind), {}
    for text in overrides:
        key = text.partition("=")[0]
        override = parse(quote_text(text) if known.get(key) in TEXT else text)
        key = override.key_or_group
        if key not in known:
            like = nearest(key, known)
            raise ConfigError(f"unknown key {key!r}" + (f"; did you mean {like}?" if like else f": {', '.join(known)}"))
        if key in given:
            raise ConfigError(f"{key} is given twice")
        given[key] = _value(override, text.partition("=")[2], known[key])
        if isinstance(given[key], str):
            given[key] = at_home(given[key])
        elif isinstance(given[key], list):
            given[key] = [at_home(item) if isinstance(item, str) else item for item in given[key]]
    missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in given]
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given, as key=value")
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}") from None


def _value(override: Override, text: str, kind: Any) -> Any:
    value = override.value()
    if get_origin(kind) is tuple and not isinstance(value, list):
        value = [value]
    # A number may be the name of a file: the field's type decides.
    return text if isinstance(value, bool | int | float) else value
