"""Writes `megagpt train --help`: examples, the config groups and every key with its type, default and docstring."""

import ast
import dataclasses
import inspect
import textwrap
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from megagpt.config import schema
from megagpt.config.explain import describe
from megagpt.config.groups import CONFIG_DIR, groups
from megagpt.config.nearest import nearest
from megagpt.errors import ConfigError

WIDTH = 100

_USAGE = """\
Trains a model: one command for every stage, for one process or a thousand.

  megagpt train [--nproc-per-node N] [--config] [GROUP=OPTION ...] [KEY=VALUE ...]
  torchrun ... -m megagpt [GROUP=OPTION ...] [KEY=VALUE ...]        the same on several machines

Examples
  megagpt train experiment=demo                        # the demo in one process
  megagpt train --nproc-per-node 2 experiment=demo     # the same, data parallel on two ranks
  megagpt train --nproc-per-node 2 experiment=demo parallel=tensor run_name=demo_tensor
  megagpt train experiment=demo optim.lr=1e-3 run_name=demo_lr
  megagpt train experiment=pretrain_125m 'data.corpora=[{path:data/web,weight:3},{path:data/code}]'
  megagpt train --config experiment=pretrain_125m      # shows the whole configuration, runs nothing
  megagpt train --help optim                           # only the keys of one section
"""


def full() -> str:
    """The whole help."""
    sections = [_section(name) for name in ("", *_sections())]
    return "\n".join([_USAGE, _groups(), "Keys (KEY=VALUE), each with its type and default", "", *sections])


def section(name: str) -> str:
    """The help of one section of the configuration, with the options of its group.

    Raises ConfigError when there is no section of that name.
    """
    known = {**_sections(), **groups()}
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close}?" if close else f"the sections are {', '.join(known)}"
        raise ConfigError(f"--help {name}: no such section; {hint}")
    parts = [_options(name)] if name in groups() else []
    return "\n".join([*parts, _section(name)] if name in _sections() else parts)


def docstrings(cls: type) -> dict[str, str]:
    """{field: docstring below it} of a dataclass, read from its source, because importing pydantic is slow."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        statement.target.id: inspect.cleandoc(following.value.value)
        for statement, following in pairwise(body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }


def _sections() -> dict[str, type]:
    hints = get_type_hints(schema.Config)
    return {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}


def _groups() -> str:
    lines = ["Groups (GROUP=OPTION); * marks the default option", ""]
    for name, options in groups().items():
        default = _defaults().get(name)
        shown = ", ".join(f"{option}*" if option == default else option for option in options)
        lines.append(textwrap.fill(shown, WIDTH, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14))
    return "\n".join([*lines, ""])


def _options(group: str) -> str:
    """Every option of a group with the comment at the top of its file."""
    lines = [f"{group}=OPTION; * marks the default option", ""]
    for option in groups()[group]:
        label = f"{option}*" if option == _defaults().get(group) else option
        text = (CONFIG_DIR / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
        comment = " ".join(line.lstrip("# ") for line in text if line.startswith("# ") and "@package" not in line)
        lines.append(_hanging(label, comment))
    return "\n".join([*lines, ""])


def _defaults() -> dict[str, str | None]:
    """{group: the option that configs/config.yaml chooses}."""
    entries = yaml.safe_load((CONFIG_DIR / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def _section(name: str) -> str:
    """The keys of a section; for an empty name, the keys outside all sections."""
    cls = _sections()[name] if name else schema.Config
    lines = [f"{name or 'run'}: {inspect.cleandoc(cls.__doc__)}"]
    lines += _keys(cls, f"{name}." if name else "")
    return "\n".join([*lines, ""])


def _keys(cls: type, prefix: str) -> list[str]:
    lines, kinds, texts = [], get_type_hints(cls), docstrings(cls)
    for field in dataclasses.fields(cls):
        kind, key = kinds[field.name], prefix + field.name
        if key in _sections():
            continue
        lines.append(f"  {key:<33} {describe(kind)}{_default(field)}")
        lines.append(textwrap.indent(textwrap.fill(texts[field.name], WIDTH - 6), " " * 6))
        lines += _keys(kind, f"{key}.") if dataclasses.is_dataclass(kind) else []
        lines += [line for item in _items(kind) for line in _keys(item, f"{key}[].")]
    return lines


def _items(kind: Any) -> list[type]:
    """The dataclass of a list's items, in a list; [] when the items are not dataclasses."""
    return [item for item in get_args(kind) if dataclasses.is_dataclass(item)] if get_origin(kind) is tuple else []


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return ""
    if field.default is dataclasses.MISSING:
        return ", required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    shown = (
        f"{value:_}"
        if type(value) is int and value >= 100_000
        else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0]
    )
    return f"; {shown.strip()}"


def _hanging(label: str, text: str) -> str:
    return textwrap.fill(text or " ", WIDTH, initial_indent=f"  {label:<16}", subsequent_indent=" " * 18).rstrip()
