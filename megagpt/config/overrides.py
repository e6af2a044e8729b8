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
"""Types of the fields whose values are used exactly as they were typed."""


def parse(text: str) -> Override:
    """Parse one override. Raises ConfigError when the text is not an override."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, equals, value = text.partition("=")
        advice = str(error).splitlines()[-1] if equals else f"write {key[:100]}=VALUE"
        if value.startswith(("[", "{")):
            advice += "; put text in quotes if it has other characters than letters, digits, '/', '.', '_' and '-'"
        raise ConfigError(f"{text[:200]!r} cannot be read as an override: {advice}") from None


def quote_text(text: str) -> str:
    """An override of a text field with its value in quotes, so that Hydra does not change it.

    Without quotes, Hydra turns 2024_11 into 202411 and cannot parse a path that contains `=` or a comma. Values that
    are quoted already, null, lists and mappings stay as they are.
    """
    key, equals, value = text.partition("=")
    if not equals or value == "null" or value.startswith(("'", '"', "[", "{")):
        return text
    value = value.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"{key}='{value}{chr(92) if value.endswith(chr(92)) else ''}'"


def build(kind: type[Settings], overrides: list[str]) -> Settings:
    """A dataclass with the values in `overrides`; for a list, a single value stands for a list of one item.

    Raises ConfigError for an unknown key, a missing key, a key that is given twice, or a wrong value.
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
    # A number may be the name of a file, so its text is passed on and pydantic converts it to the field's type.
    return text if isinstance(value, bool | int | float) else value
