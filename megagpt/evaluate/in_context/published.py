"""GPT-3's published figures, to draw behind ours where the task is the same.

published.json holds them in percent. A figure is null there where it was not published, or where copies of the table
disagree on it. Scrambling and arithmetic come from the paper's own tables about them: a widespread copy of its large
table has their rows shifted.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Setting = Literal["zero", "one", "few"]


@dataclass(frozen=True)
class Published:
    """A task's accuracies by size, from 0 to 1; None where there is no certain figure."""

    title: str
    names: tuple[str, ...]
    """What the task is called here and in lm-eval."""
    few_shots: int
    """Demonstrations of the few-shot setting."""
    zero: tuple[float | None, ...]
    one: tuple[float | None, ...]
    few: tuple[float | None, ...]

    def by_shots(self, size: int) -> list[tuple[int, float]]:
        """(number of shots, accuracy) of the size at a place in `sizes`, as far as there are figures."""
        shots = {0: self.zero[size], 1: self.one[size], self.few_shots: self.few[size]}
        return [(number, value) for number, value in shots.items() if value is not None]

    def by_size(self, setting: Setting) -> list[tuple[int, float]]:
        """(parameters, accuracy) in one setting, as far as there are figures."""
        values = getattr(self, setting)
        return [(size, value) for size, value in zip(parameters(), values, strict=True) if value is not None]


def published(task: str) -> Published | None:
    """The published figures of a task by its name here or in lm-eval; None where there are none."""
    return _tasks().get(task)


def sizes() -> list[str]:
    """Names of GPT-3's eight sizes, ascending."""
    return _content()["sizes"]


def parameters() -> list[int]:
    """Parameters of the eight sizes."""
    return _content()["parameters"]


def source() -> str:
    """Where the figures stand."""
    return _content()["source"]


@cache
def _content() -> dict:
    return json.loads(resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8"))


@cache
def _tasks() -> dict[str, Published]:
    found = {}
    for task in _content()["tasks"]:
        shares = {
            setting: tuple(None if value is None else value / 100 for value in task[setting])
            for setting in ("zero", "one", "few")
        }
        entry = Published(**task | shares | {"names": tuple(task["names"])})
        found |= dict.fromkeys(entry.names, entry)
    return found
