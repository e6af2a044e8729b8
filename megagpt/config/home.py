"""Expands `~` in paths: a shell does not expand it after the `=` of an override."""

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
    """`path` with a leading `~` or `~user` replaced by the home folder; unchanged when there is no such user."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib's raises RuntimeError for an unknown user)


def expand_home(values: dict[str, Any]) -> None:
    """Replace a leading `~` by the home folder in all paths of a composed configuration, in place."""
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
