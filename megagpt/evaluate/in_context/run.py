"""Runs in-context tasks, each with each number of demonstrations, by either protocol."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megagpt.errors import ConfigError
from megagpt.evaluate.in_context.bars import only_our_bars
from megagpt.evaluate.in_context.outcomes import TaskOutcome

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import ConfigurableTask

Protocol = Literal["lm-eval", "gpt3"]
PROTOCOLS: tuple[Protocol, ...] = ("lm-eval", "gpt3")


def run_tasks(
    lm: "TemplateLM",
    *,
    tasks: Sequence[str],
    shots: Sequence[int] = (),
    protocol: Protocol = "lm-eval",
    data: Path | None = None,
    limit: int | None = None,
    seed: int = 1234,
    clean: Path | None = None,
    done: Collection[tuple[str, int]] = (),
) -> Iterator[TaskOutcome]:
    """Yield the outcome of each task with each number of shots; the same on all ranks of `lm`.

    tasks: names of tasks and suites, or paths of task files. shots: numbers of demonstrations; empty uses each task's
    own number (`own_shots`). data: folder of the data sets. limit: number of examples per task. seed: for drawing
    demonstrations. clean: output folder of `megagpt data overlap`, with protocol gpt3 only: adds metrics of the clean
    subsets; needs `data`. done: (task, shots) pairs to leave out.

    Raises ConfigError and DataError like `check_tasks`; with protocol gpt3 also DataError, before any task runs, for a
    task without a question that fits the context.
    """
    require_lm_eval()
    from megagpt.evaluate.in_context.clean import CleanSubsets
    from megagpt.evaluate.in_context.task_files import load_tasks, notes_of, source_of

    subsets = None if clean is None else CleanSubsets(clean, data)
    loaded = load_tasks(list(tasks), data)
    if protocol == "gpt3":  # before any task runs
        from megagpt.evaluate.in_context.gpt3 import check_fits, evaluate_gpt3
        from megagpt.evaluate.in_context.gpt3_task import Gpt3Task

        for task in loaded:
            check_fits(lm, Gpt3Task(task), limit)
    for task in loaded:
        for number in shots or (own_shots(task, protocol),):
            if (task.task_name, number) in done:
                continue
            with only_our_bars():
                if protocol == "gpt3":
                    known = None if subsets is None else subsets.clean(list(task.eval_docs))
                    outcome = evaluate_gpt3(lm, task, number, seed=seed, limit=limit, clean=known)
                else:
                    from megagpt.evaluate.in_context.harness import evaluate_with_harness

                    outcome = evaluate_with_harness(lm, task, number, seed=seed, limit=limit)
            yield replace(outcome, source=source_of(task), notes=[*outcome.notes, *notes_of(task)])


def own_shots(task: "ConfigurableTask", protocol: Protocol) -> int:
    """A task's default number of demonstrations: GPT-3's published number with protocol gpt3, else the task file's."""
    published = (task.config.metadata or {}).get("gpt3", {}).get("shots") if protocol == "gpt3" else None
    return (task.config.num_fewshot or 0) if published is None else published


def check_tasks(tasks: Sequence[str], shots: Sequence[int], protocol: str, data: Path | None) -> list[str]:
    """The names of the tasks in `tasks`, with groups expanded, after a quick check of their data without a model.

    Raises ConfigError for a missing library, an unknown task or protocol, a task that the protocol does not support,
    and a number of shots that is negative, repeated or too large; DataError for missing or broken data.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is {protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
    if any(number < 0 for number in shots) or len(set(shots)) < len(shots):
        raise ConfigError(f"shots is {list(shots)}; it must be a list of different numbers from 0 up, such as [0,1,8]")
    require_lm_eval()
    from megagpt.evaluate.in_context.task_files import load_tasks

    found = load_tasks(list(tasks), data)
    for task in found:
        if protocol == "gpt3":
            from megagpt.evaluate.in_context.gpt3_task import Gpt3Task

            check_shots = Gpt3Task(task).check_shots
        else:
            from megagpt.evaluate.in_context.harness import check_shots

            check_shots = partial(check_shots, task)
        for number in shots:
            check_shots(number)
    return [task.task_name for task in found]


def require_lm_eval() -> None:
    """Raise ConfigError when lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise ConfigError('evaluation in context needs lm-eval: pip install "megagpt[in-context]"')
