"""Sets of programming problems: their files, their prompts, where a completion ends, and the program to test."""

import ast
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.sandbox import SandboxJob

CODEX_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function's body ends (Chen et al., arXiv 2107.03374, section 2.3)."""

MBPP_STOP = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif")
"""Where a whole program ends that may have several functions."""


@dataclass(frozen=True)
class Problem:
    """One problem. A program is `prefix` + completion + `suffix`."""

    task_id: str
    prompt: str
    """The text that the model continues or, when there is a suffix, the text before the gap."""
    prefix: str
    suffix: str | None
    """The text after the gap; None when nothing is to be filled in."""
    reference: str
    """A whole program that is right."""
    solution: str
    """The completion that makes the reference."""
    functions: tuple[str, ...]
    """Names that the tests call."""
    tests: str
    stop: tuple[str, ...]
    """A completion ends before the first of these."""
    ending: str = ""
    """Added to a completion that was cut there."""

    def job(self, completion: str) -> SandboxJob:
        """The program with `completion`, taken as it is, and its tests."""
        program = self.prefix + completion + (self.suffix or "")
        return SandboxJob(program, self.reference, self.functions, self.tests)

    def truncate(self, text: str) -> str:
        """The completion in a model's output: the text before the first stop string."""
        ends = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        return (text[: min(ends)] if ends else text) + self.ending


def read_problems(task: str, path: Path) -> list[Problem]:
    """The problems of a file of `task`, one of TASKS: .jsonl or a JSON array, plain or .gz.

    Raises DataError for a file that cannot be read or a record without a field (naming both), ConfigError for another
    task.
    """
    if task not in TASKS:
        raise ConfigError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    problems: dict[str, Problem] = {}
    for place, record in _records(path):
        try:
            problem = TASKS[task](record)
        except KeyError as error:
            raise DataError(f"{place}: a problem of {task} needs the field {error}") from None
        except (AttributeError, TypeError, SyntaxError, ValueError) as error:
            raise DataError(f"{place}: not a problem of {task} ({error})") from None
        if problem.task_id in problems:
            raise DataError(f"{place}: the task_id {problem.task_id} occurs twice")
        problems[problem.task_id] = problem
    if not problems:
        raise DataError(f"{path} holds no problem")
    return list(problems.values())


def prompt_hash(problems: Sequence[Problem]) -> str:
    """sha256 of all prompts, in order."""
    return hashlib.sha256(json.dumps([[p.task_id, p.prompt, p.suffix] for p in problems]).encode()).hexdigest()


def _humaneval(record: dict[str, Any]) -> Problem:
    """Continue a function from its signature and docstring."""
    prompt, solution = record["prompt"], record["canonical_solution"]
    return Problem(
        task_id=record["task_id"],
        prompt=prompt,
        prefix=prompt,
        suffix=None,
        reference=prompt + solution,
        solution=solution,
        functions=(record["entry_point"],),
        tests=f"{record['test']}\ncheck({record['entry_point']})\n",
        stop=CODEX_STOP,
    )


def _humaneval_infilling(record: dict[str, Any]) -> Problem:
    """Fill in a line, several lines or a random span of a function (Bavarian et al., arXiv 2207.14255).

    The model says where the middle ends; a single line also ends with its line.
    """
    prompt, suffix, solution = record["prompt"], record["suffix"], record["canonical_solution"]
    single = record["task_id"].startswith("SingleLine")
    return Problem(
        task_id=record["task_id"],
        prompt=prompt,
        prefix=prompt,
        suffix=suffix,
        reference=prompt + solution + suffix,
        solution=solution,
        functions=(record["entry_point"],),
        tests=f"{record['test']}\ncheck({record['entry_point']})\n",
        stop=("\n",) if single else (),
        ending="\n" if single else "",
    )


def _mbpp(record: dict[str, Any]) -> Problem:
    """Write a program from a sentence and its tests (Austin et al., arXiv 2108.07732), which form a docstring."""
    tests, code = list(record["test_list"]), record["code"]
    setup = [*record.get("test_imports", []), record.get("test_setup_code", "")]
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
    source = "\n".join([*setup, *tests])
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    if not defined & used:
        raise ValueError("the tests call no function of its code")
    return Problem(
        task_id=str(record["task_id"]),
        prompt="\n".join(['"""', record["text"] if "text" in record else record["prompt"], *tests, '"""', ""]),
        prefix="",
        suffix=None,
        reference=code,
        solution=code,
        functions=tuple(sorted(defined & used)),
        tests=source,
        stop=MBPP_STOP,
    )


TASKS = {"humaneval": _humaneval, "humaneval_infilling": _humaneval_infilling, "mbpp": _mbpp}
"""The sets by name, each with the function that turns a record into a problem."""


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place for messages, record) of every record."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read problems from {path}: {error}") from None
    if ".json" in path.suffixes:
        places = [(str(path), text)]
    else:
        places = [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    records = []
    for place, part in places:
        try:
            value = json.loads(part)
        except ValueError as error:
            raise DataError(f"{place}: not JSON ({error})") from None
        values = value if isinstance(value, list) else [value]
        records += [(place if len(values) == 1 else f"{place}[{at}]", one) for at, one in enumerate(values)]
    return records
