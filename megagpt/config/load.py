"""Turns YAML files and `key=value` overrides into a `Config`; no other module but `overrides.py` uses Hydra.

Hydra only composes the configuration: it makes no output folder, sets up no logging and does not change the working
folder. Its result is plain data, which is checked field by field against the dataclasses in `schema.py`. A
configuration cannot name code: keys such as `_target_` are unknown keys, YAML tags that build objects are refused, and
`${...}` may only refer to another key (`${run_name}`). Resolvers such as `${oc.env:...}` are refused and never called.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from megagpt.config import overrides as grammar
from megagpt.config.explain import booleans_for_numbers, explain, fields, is_list
from megagpt.config.groups import CONFIG_DIR, groups
from megagpt.config.home import expand_home
from megagpt.config.nearest import nearest
from megagpt.config.regular import require_file
from megagpt.config.renamed import translate
from megagpt.config.schema import Config
from megagpt.errors import ConfigError

_REFERENCE = re.compile(r"\$\{\.*[A-Za-z][\w.]*\}")


def load(overrides: list[str]) -> Config:
    """Composes configs/config.yaml with command-line overrides: `group=option` or `key=value`, in Hydra's grammar.

    Raises ConfigError that lists every unknown key and every value of a wrong type.
    """
    lines, problems = [], []
    for text in overrides:
        try:
            lines.append(_normalize(text))
        except ConfigError as error:
            problems.append(str(error))
    raise_all(problems)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            composed = compose("config", overrides=lines)
        _refuse_resolvers(OmegaConf.to_container(composed, resolve=False))
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        expand_home(values)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        key = getattr(error, "full_key", None) or "the configuration"
        raise ConfigError(f"{key}: cannot be composed: {str(error).splitlines()[0]}") from error
    return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Builds a Config from plain data; absent keys take their defaults.

    Raises ConfigError that lists every unknown key and every value of a wrong type.
    """
    problems = list(booleans_for_numbers(values))
    try:
        config = _validator().validate_python(values)
    except ValidationError as error:
        problems += [
            line for detail in error.errors(include_url=False, include_context=False) for line in explain(detail)
        ]
    raise_all(problems)
    return config


def from_saved(values: Mapping[str, Any]) -> Config:
    """Builds a Config from a saved one, such as that in a checkpoint's manifest; keys of older versions are translated.

    Raises ConfigError as `from_dict`.
    """
    return from_dict(translate(values))


def to_dict(config: Config) -> dict[str, Any]:
    """The whole configuration as plain dicts, lists and scalars; `from_dict` gives the same Config back."""
    return _plain(dataclasses.asdict(config))


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, in the schema's order."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def save(config: Config, path: str | Path) -> None:
    """Writes `to_yaml(config)` to `path`; an existing file is replaced atomically. Raises OSError."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(to_yaml(config), encoding="utf-8")
    temporary.replace(path)


def read(path: str | Path) -> Config:
    """Reads a file that `save` wrote, also one of an older version. Raises ConfigError that names the file."""
    try:
        values = yaml.safe_load(require_file(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable configuration: {error}") from error
    try:
        return from_saved(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def raise_all(problems: list[str]) -> None:
    """Raises one ConfigError with a line for each problem; does nothing when there is none."""
    lines = list(dict.fromkeys(problems))
    if len(lines) > 1:
        lines = [f"{len(lines)} problems in the configuration", *(f"  {line}" for line in lines)]
    if lines:
        raise ConfigError("\n".join(lines))


def _normalize(text: str) -> str:
    """One override in the form that Hydra needs. Groups and options are checked; keys may be absent from the YAML."""
    if _types().get(text.partition("=")[0].lstrip("+")) in grammar.TEXT:
        text = grammar.quote_text(text)
    override = grammar.parse(text)
    key, options = override.key_or_group, groups()
    if not key:
        raise ConfigError(f"{text!r} cannot be read as an override: write KEY=VALUE")
    if key.split(".")[0].split("/")[0] == "hydra":
        raise ConfigError(f"{text}: Hydra only composes the configuration here; it has no settings of its own")
    if override.is_sweep_override():
        raise ConfigError(f"{text}: several values; one run takes one. A list is written {key}=[a,b]")
    if override.is_delete():
        return text
    if "/" in key or override.package:
        raise ConfigError(f"{text}: write GROUP=OPTION; the groups are {', '.join(options)}")
    if key not in options:
        return "++" + text.lstrip("+")
    option = override.value()
    if option not in options[key]:
        close = nearest(str(option), options[key])
        hint = f"did you mean {key}={close}?" if close else f"the options are {', '.join(options[key])}"
        raise ConfigError(f"{text}: no such option; {hint}")
    return f"{key}={option}"


def _refuse_resolvers(value: Any, path: str = "") -> None:
    """Raises ConfigError for a `${...}` that is not just a reference to another key."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        _refuse_resolvers(child, f"{path}.{key}" if path else str(key))
    if isinstance(value, str) and "${" in _REFERENCE.sub("", value).replace("\\${", ""):
        raise ConfigError(f"{path}: {value!r} is refused: ${{...}} may only refer to another key, as in ${{run_name}}")


@cache
def _types() -> dict[str, Any]:
    return fields()


@cache
def _validator() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if is_list(value) else value
