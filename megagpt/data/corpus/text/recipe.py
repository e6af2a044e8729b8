"""Recipes: the steps that filter a text, and their limits. The recipes in configs/corpus follow publications."""

import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megagpt.config.groups import CORPUS_DIR
from megagpt.config.nearest import nearest
from megagpt.data.corpus.text import limits
from megagpt.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """The steps of a corpus in their order; None leaves a step out."""

    urls: limits.Urls | None = None
    languages: limits.Languages | None = None
    lines: limits.Lines | None = None
    c4: limits.C4 | None = None
    gopher_quality: limits.GopherQuality | None = None
    gopher_repetition: limits.GopherRepetition | None = None
    fineweb: limits.FineWeb | None = None
    quality: limits.Quality | None = None
    pii: limits.Pii | None = None
    duplicates: limits.Duplicates | None = None
    decontamination: limits.Decontamination | None = None


def recipes() -> list[str]:
    """Names of the recipes that come with megagpt."""
    return sorted(path.stem for path in CORPUS_DIR.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of that name, or in that YAML file, with `step.key=value` overrides; `step=null` leaves a step out.

    Raises ConfigError with every unknown key, the nearest known key, and every value with a wrong type or out of range.
    """
    where = str(name_or_path)
    path = CORPUS_DIR / f"{where}.yaml" if where in recipes() else Path(name_or_path)
    if not path.is_file():
        close = nearest(where, recipes())
        hint = f"did you mean {close}?" if close else f"there are {', '.join(recipes())}"
        raise ConfigError(f"recipe {where}: no such recipe, and no such file; {hint}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe {path}: cannot be read: {str(error).splitlines()[0]}") from error
    for text in overrides:
        _override(values, text)
    return from_dict(values, f"recipe {where}")


def from_dict(values: Any, where: str = "recipe") -> Recipe:
    """The recipe from plain data, such as the result of `to_dict`. Raises ConfigError as `load_recipe`."""
    problems: list[str] = []
    recipe = _build(Recipe, values, "", problems)
    if problems:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    return recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain dicts, lists and scalars."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(child) for key, child in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(recipe))


def _override(values: Any, text: str) -> None:
    """Apply one override `step.key=value` to `values`."""
    key, equals, given = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{text!r} cannot be read as an override: write STEP.KEY=VALUE")
    *sections, name = key.split(".")
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {given}"), resolve=False)["value"]
    except (yaml.YAMLError, OmegaConfBaseException, TypeError) as error:
        raise ConfigError(f"{text!r} cannot be read as an override: {str(error).splitlines()[0]}") from error
    for depth, section in enumerate(sections, 1):
        path = ".".join(sections[:depth])
        if section not in values or not isinstance(values[section], dict):
            known = [field for field in _paths(Recipe) if field == path]
            hint = f"{path} is off in this recipe: turn it on with {path}={{}} before" if known else _unknown(path)
            raise ConfigError(f"{text}: {hint}")
        values = values[section]
    values[name] = value


def _build(kind: type, values: Any, path: str, problems: list[str]) -> Any:
    """An object of the dataclass `kind` from a mapping. Errors are added to `problems`."""
    if not isinstance(values, Mapping):
        problems.append(f"{path or 'the file'}: expected a mapping of keys to values, got {values!r}")
        return None
    hints, known = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    given = {}
    for name, value in values.items():
        here = f"{path}.{name}" if path else str(name)
        if name not in known:
            problems.append(_unknown(here))
        else:
            given[name] = _value(hints[name], value, known[name].metadata.get("range"), here, problems)
    return kind(**given)


def _value(hint: Any, value: Any, limits: tuple[float, float] | None, path: str, problems: list[str]) -> Any:
    """`value` as the type `hint`. Errors are added to `problems`."""
    optional = get_origin(hint) in (Union, types.UnionType)
    kind = get_args(hint)[0] if optional else hint
    if optional and value is None:
        return None
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path, problems)
    if get_origin(kind) is tuple:
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        problems.append(f"{path}: expected {_describe(kind)}{' or null' if optional else ''}, got {value!r}")
    elif limits and not limits[0] <= value <= limits[1]:
        upper = f" to {limits[1]:g}" if limits[1] != float("inf") else " or more"
        problems.append(f"{path}: expected {_describe(kind)} from {limits[0]:g}{upper}, got {value!r}")
    return value


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "a list of words, such as [en, de]"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def _unknown(path: str) -> str:
    """The message for an unknown key."""
    section, _, _ = path.rpartition(".")
    beside = [known for known in _paths(Recipe) if known.rpartition(".")[0] == section]
    close = nearest(path, beside) or nearest(path, _paths(Recipe))
    hint = f"did you mean {close}?" if close else f"there are {', '.join(beside or _paths(Recipe))}"
    return f"{path}: no such key; {hint}"


def _paths(kind: type, prefix: str = "") -> Iterator[str]:
    """Every key, steps included."""
    for name, hint in get_type_hints(kind).items():
        yield prefix + name
        section = next(filter(dataclasses.is_dataclass, (hint, *get_args(hint))), None)
        if section:
            yield from _paths(section, f"{prefix}{name}.")
