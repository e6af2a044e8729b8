"""Families of tasks, such as MMLU's subjects; a page shows a family's average first, and its tasks on demand."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from megagpt.evaluate.in_context.results import Result

MANY = 5
"""Smallest number of tasks for which a family's average is shown in place of its tasks."""


def families(names: Iterable[str]) -> dict[str, str]:
    """{task: family} of the tasks whose family has at least MANY tasks among `names`.

    A family is a folder of task files in tasks/.
    """
    folder = Path(__file__).parent / "tasks"
    family = {path.stem: path.parent.name for path in folder.glob("*/*.yaml")}
    found = {name: family[name] for name in names if name in family}
    sizes = Counter(found.values())
    return {name: family for name, family in found.items() if sizes[family] >= MANY}


def only_family(results: Sequence[Result], family: str) -> list[Result]:
    """The results with only the tasks of one large family."""
    family_of = families(task.task for result in results for task in result.tasks)
    return [
        replace(result, tasks=[task for task in result.tasks if family_of.get(task.task) == family])
        for result in results
    ]


def named(names: Iterable[str]) -> str:
    """The tasks as text, with large families summarized: "lambada, mmlu (57 tasks)"."""
    names = list(names)
    family = families(names)
    sizes = Counter(family.values())
    words = (f"{family[name]} ({sizes[family[name]]} tasks)" if name in family else name for name in names)
    return ", ".join(dict.fromkeys(words))
