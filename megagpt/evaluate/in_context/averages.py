"""Accuracy averaged over tasks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megagpt.evaluate.in_context.results import Result
from megagpt.evaluate.in_context.summary import TaskResult
from megagpt.evaluate.pass_at_k import NORMAL_95

ACCURACIES = ("accuracy", "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Main metrics that are fractions of right answers, so that an average over tasks makes sense."""

Key = tuple[str, int]
"""(task, number of shots)."""


@dataclass(frozen=True)
class Point:
    """A value with its 95% interval."""

    value: float
    low: float | None
    high: float | None
    text: str = ""


@dataclass(frozen=True)
class Averages:
    """Means over the tasks that all results have with all numbers of shots."""

    tasks: list[str]
    points: dict[str, list[Point | None]]
    """{label of the number of shots: one point per result}."""
    shots: dict[str, float]
    """{label: number of shots}; for "few" the mean over tasks."""
    chance: float | None
    left_out: list[str]
    """Tasks that are not in the mean."""


def is_accuracy(task: TaskResult) -> bool:
    """Whether the task's main metric is a fraction of right answers."""
    return task.main_metric in ACCURACIES and task.higher_is_better


def averages(results: Sequence[Result]) -> Averages:
    """Average accuracies by number of shots, for the numbers of shots that most tasks have."""
    labels = _labels({(task.task, task.shots) for result in results for task in result.tasks if is_accuracy(task)})
    sides = [
        {(task.task, labels[task.task, task.shots]): task for task in result.tasks if is_accuracy(task)}
        for result in results
    ]
    names = list(dict.fromkeys(name for side in sides for name, _ in side))
    found = dict.fromkeys(labels[key] for key in sorted(labels, key=lambda key: key[1]))
    wanted = [
        label
        for label in found
        if 2 * sum((name, label) in side for side in sides for name in names) > len(sides) * len(names)
    ]
    kept = [name for name in names if wanted and all((name, label) in side for side in sides for label in wanted)]
    if not kept:
        wanted = []
    numbers = {
        label: [number for (name, number), other in labels.items() if other == label and name in kept]
        for label in wanted
    }
    chances = [side[name, wanted[0]].chance for side in sides for name in kept]
    return Averages(
        tasks=kept,
        points={label: [_mean([side[name, label] for name in kept]) for side in sides] for label in wanted},
        shots={label: sum(values) / len(values) for label, values in numbers.items()},
        chance=sum(chances) / len(chances) if chances and None not in chances else None,
        left_out=list(dict.fromkeys(t.task for result in results for t in result.tasks if t.task not in kept)),
    )


def _labels(keys: set[Key]) -> dict[Key, str]:
    """The label of each number of shots: "few" above 1 if each task has one such number, as in the paper."""
    above = {name: {number for other, number in keys if other == name and number > 1} for name, _ in keys}
    few = all(len(numbers) <= 1 for numbers in above.values()) and len(set().union(*above.values())) > 1
    return {(name, number): "few" if few and number > 1 else str(number) for name, number in keys}


def _mean(tasks: Sequence[TaskResult]) -> Point | None:
    """Mean of accuracies with an interval by the normal approximation; None if one of them is not a number.

    If all answers are right, or all wrong, the approximation's variance is 0, and there is no interval.
    """
    values = [task.main.value for task in tasks]
    if None in values:
        return None
    # p (1 - p) is the variance of values that are 0 or 1, and a bound for values in between.
    variance = sum(max(0.0, task.main.value * (1 - task.main.value)) / task.examples for task in tasks)
    mean, reach = sum(values) / len(values), NORMAL_95 * math.sqrt(variance) / len(values)
    low, high = (max(0.0, mean - reach), min(1.0, mean + reach)) if variance else (None, None)
    return Point(mean, low, high, f"mean of {len(tasks)} tasks")
