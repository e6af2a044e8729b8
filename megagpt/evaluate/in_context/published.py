"""GPT-3's published figures, for charts of the same tasks.

published.json holds them in percent. A figure is null if it was not published, or if copies of the table disagree on
it. Figures of scrambling and arithmetic come from the paper's separate tables, because a widespread copy of the large
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
    """A task's accuracies by model size, from 0 to 1; None for missing figures."""

    title: str
    names: tuple[str, ...]
    """The task's names in megagpt and in lm-eval."""
    few_shots: int
    """Number of demonstrations in the few-shot setting."""
    zero: tuple[float | None, ...]
    one: tuple[float | None, ...]
    few: tuple[float | None, ...]

    def by_shots(self, size: int) -> list[tuple[int, float]]:
        """(number of shots, accuracy) for the size with index `size` in `sizes()`, without missing figures."""
        shots = {0: self.zero[size], 1: self.one[size], self.few_shots: self.few[size]}
        return [(number, value) for number, value in shots.items() if value is not None]

    def by_size(self, setting: Setting) -> list[tuple[int, float]]:
        """(parameters, accuracy) in one setting, without missing figures."""
        values = getattr(self, setting)
        return [(size, value) for size, value in zip(parameters(), values, strict=True) if value is not None]


def published(task: str) -> Published | None:
    """The published figures of a task, by its name in megagpt or lm-eval; None if there are none."""
    return _tasks().get(task)


def sizes() -> list[str]:
    """Names of GPT-3's eight sizes, ascending."""
    return _content()["sizes"]


def parameters() -> list[int]:
    """Numbers of parameters of the eight sizes."""
    return _content()["parameters"]


def source() -> str:
    """The source of the figures."""
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
