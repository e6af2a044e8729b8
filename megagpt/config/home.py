"""Paths that begin with `~`, which no shell expands behind the `=` of an override."""

import os.path
from typing import Any

PATHS = {
    "": ("runs_dir",),
    "data": ("tokenizer", "corpora", "conversations", "rankings", "pairs"),
    "parallel": ("offload_path",),
    "stage": ("held_out_edits", "reward_model"),
    "stage.tasks": ("data", "names"),
    "ppo": ("reward_model", "critic"),
    "embed": ("scored_pairs",),
    "checkpoint": ("load",),
}
"""Fields that hold paths, by section."""


def at_home(path: str) -> str:
    """`path` with the home folder in place of a `~` at its beginning; as it is where there is no such user."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib's raises RuntimeError for an unknown user)


def expand_home(values: dict[str, Any]) -> None:
    """Put the home folder in place of `~` in the paths of a composed configuration."""
    for name, fields in PATHS.items():
        section: Any = values
        for part in filter(None, name.split(".")):
            section = section.get(part) if isinstance(section, dict) else None
        for field in fields:
            if isinstance(section, dict) and field in section:
                section[field] = _expanded(section[field])


def _expanded(value: Any) -> Any:
    if isinstance(value, str):
        return at_home(value)
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if isinstance(value, dict) and "path" in value:
        return value | {"path": _expanded(value["path"])}
    return value
