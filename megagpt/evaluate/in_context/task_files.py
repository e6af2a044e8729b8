"""Finds tasks by name: megagpt's task files, the user's, and lm-eval's.

A task file is YAML in lm-eval's format. megagpt's task files are in tasks/, named after their tasks, and read their
examples from data=FOLDER without network; docs/in_context_tasks.md lists them. A name is looked up there first, then as
the path of a YAML file, then among lm-eval's tasks, most of which read their examples from the Hugging Face hub.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from megagpt.config.nearest import nearest
from megagpt.errors import ConfigError, MegaGPTError
from megagpt.evaluate.in_context.bars import only_our_bars

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

_FOLDER = Path(__file__).parent / "tasks"
_LOG = logging.getLogger(__name__)


def load_tasks(names: list[str], data: Path | None) -> "list[Task]":
    """lm-eval's task objects for names of tasks or groups, or paths of task files; each task once, in the given order.

    Reads their examples, from the folder `data`. Raises ConfigError for an unknown name and a task file that lm-eval
    cannot use, DataError for a file in `data` that is missing or broken.
    """
    if not names:
        raise ConfigError("tasks is empty: name at least one task, such as tasks=[lambada]")
    shipped = _shipped()
    _check_names(list(_expanded(names, shipped)), shipped)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError('in-context evaluation needs lm-eval: pip install "megagpt[in-context]"') from None

    metadata = {} if data is None else {"data": str(data)}
    own = TaskManager(include_path=str(_FOLDER), include_defaults=False, metadata=metadata)
    others: TaskManager | None = None  # created only if needed, because its index takes many seconds
    tasks: dict[str, Task] = {}
    for name in _expanded(names, shipped):
        if name in shipped or name.endswith((".yaml", ".yml")):
            manager = own
        else:
            manager = others = others or _all_of_lm_eval(TaskManager, metadata)
            if name not in manager.task_index:
                raise _unknown(name, [*shipped, *manager.all_tasks])
        for task in _loaded(manager, name):
            if _file_of(tasks.setdefault(task.task_name, task)) != _file_of(task):
                raise ConfigError(f"two tasks have the name {task.task_name}; give the one of {name} another")
    return list(tasks.values())


def describe() -> dict[str, str]:
    """{name: one-line description} of megagpt's tasks and groups; tasks of a large group are not listed."""
    return {path.stem: _first_line(path) for path in _task_files(_FOLDER.glob("*.yaml"))}


def source_of(task: "Task") -> dict[str, str]:
    """{name: SHA-256} of the files that one of megagpt's tasks has read, or of generated examples; else empty."""
    return dict(getattr(task.dataset, "source", {}))


def notes_of(task: "Task") -> list[str]:
    """Notes about the data of one of megagpt's tasks, for readers of its results; else empty."""
    return list(getattr(task.dataset, "notes", []))


def _file_of(task: "Task") -> str | None:
    return (task.config.metadata or {}).get("config_source")


def _task_files(paths: Iterable[Path]) -> list[Path]:
    """The sorted paths without files that are only included by others, whose names start with _."""
    return sorted(path for path in paths if not path.name.startswith("_"))


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in _task_files(_FOLDER.rglob("*.yaml"))}


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _expanded(names: Iterable[str], shipped: dict[str, Path]) -> Iterator[str]:
    """The names, without repetition, with each of megagpt's groups replaced by its tasks."""
    seen = set()
    waiting = list(reversed(list(names)))
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        members = _members(shipped[name]) if name in shipped else []
        waiting += reversed(members)
        if not members:
            yield name


def _members(path: Path) -> list[str]:
    """The names in a group's file; none for a task's file."""
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text)["task"] if "\ngroup: " in text else []


def _check_names(names: list[str], shipped: Collection[str]) -> None:
    """Refuse unknown names quickly, without lm-eval's index of its tasks, which takes many seconds."""
    texts = ""
    for name in names:
        if name in shipped:
            continue
        if name.endswith((".yaml", ".yml")):
            if not Path(name).is_file():
                raise ConfigError(f"there is no task file {name}")
            continue
        texts = texts or _texts_of_lm_eval()
        if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", texts):
            theirs = re.findall(r"^[ -]*(?:task|group|tag): *[\"']?([\w-]+)", texts, re.MULTILINE)
            raise _unknown(name, shipped if nearest(name, shipped) else theirs)


def _texts_of_lm_eval() -> str:
    """The text of all of lm-eval's task files, which contain the names of all its tasks; empty without lm-eval."""
    found = find_spec("lm_eval")
    folder = Path(next(iter(found.submodule_search_locations))) / "tasks" if found else Path("nowhere")
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*.yaml"))


def _all_of_lm_eval(manager: type["TaskManager"], metadata: dict[str, str]) -> "TaskManager":
    _LOG.info("indexing lm-eval's tasks; this takes a while")
    return manager(metadata=metadata)


def _unknown(name: str, known: Iterable[str]) -> ConfigError:
    meant = nearest(name, known)
    hint = f"did you mean {meant}?" if meant else "docs/in_context_tasks.md lists megagpt's own"
    return ConfigError(f"there is no task {name}, neither in megagpt nor in lm-eval; {hint}")


def _loaded(manager: "TaskManager", name: str) -> "list[Task]":
    """The task or tasks of a name that `manager` knows, or of a task file. Raises ConfigError and DataError."""
    try:
        with only_our_bars(), _quiet():
            return list(manager.load([name])["tasks"].values())
    except MegaGPTError as error:
        raise type(error)(f"task {name}: {error}") from None
    except Exception as error:  # lm-eval, the hub's libraries and users' functions raise all kinds of errors
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if name.endswith((".yaml", ".yml")):
            raise ConfigError(f"lm-eval cannot use the task file {name}: {reason}") from error
        raise ConfigError(
            f"the data of lm-eval's task {name} are not available ({reason}). lm-eval reads most of its tasks from the"
            " Hugging Face hub: run the task with network access, either always or once to fill the cache, and then"
            " without network with HF_DATASETS_OFFLINE=1"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's warning about metadata, which appears for every task whose reader is a function."""
    log = logging.getLogger("lm_eval.api.task")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
