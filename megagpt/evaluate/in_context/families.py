"""Tasks of one kind, such as MMLU's subjects, of which a page shows the average first and the tasks behind it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from megagpt.evaluate.in_context.results import Result

MANY = 5
"""Tasks of a family from which on they are shown behind their average."""


def families(names: Iterable[str]) -> dict[str, str]:
    """The family of each task that is one of MANY of its family among `names`; others have none.

    A family is a folder of task files below tasks/.
    """
    folder = Path(__file__).parent / "tasks"
    family = {path.stem: path.parent.name for path in folder.glob("*/*.yaml")}
    found = {name: family[name] for name in names if name in family}
    sizes = Counter(found.values())
    return {name: family for name, family in found.items() if sizes[family] >= MANY}


def only_family(results: Sequence[Result], family: str) -> list[Result]:
    """The results with the tasks of a large family alone."""
    family_of = families(task.task for result in results for task in result.tasks)
    return [
        replace(result, tasks=[task for task in result.tasks if family_of.get(task.task) == family])
        for result in results
    ]


def named(names: Iterable[str]) -> str:
    """The tasks in words, with large families counted: "lambada, mmlu (57 tasks)"."""
    names = list(names)
    family = families(names)
    sizes = Counter(family.values())
    words = (f"{family[name]} ({sizes[family[name]]} tasks)" if name in family else name for name in names)
    return ", ".join(dict.fromkeys(words))
