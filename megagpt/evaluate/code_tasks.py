"""Reads sets of programming problems, and builds their prompts, stop strings and test programs."""

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megagpt.data.files import read_text
from megagpt.data.unread import log_unread
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.fences import code_of, defines
from megagpt.evaluate.sandbox import SandboxJob

CODEX_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Strings that end a function's body (Chen et al., arXiv 2107.03374, section 2.3)."""

MBPP_STOP = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif")
"""Strings that end a whole program, which may have several functions."""

_WHOLE_PROGRAM = "Answer with the whole Python program in one Markdown code block."


@dataclass(frozen=True)
class Problem:
    """One problem. A program is `prefix` + completion + `suffix`."""

    task_id: str
    prompt: str
    """The text that the model continues or, when there is a suffix, the text before the gap."""
    prefix: str
    suffix: str | None
    """The text after the gap; None if there is no gap."""
    reference: str
    """A whole correct program."""
    solution: str
    """The completion of the reference."""
    functions: tuple[str, ...]
    """Names of functions that the tests call."""
    tests: str
    stop: tuple[str, ...]
    """A completion ends before the first of these strings."""
    ending: str = ""
    """Text that is appended to a completion."""
    question: str = ""
    """The question for a chat model; empty for problems with a gap, which chat does not support."""
    context: str = ""
    """The part of `prefix` before the function, such as imports and helpers."""

    def job(self, completion: str) -> SandboxJob:
        """The program with the unchanged `completion`, and its tests."""
        program = self.prefix + completion + (self.suffix or "")
        return SandboxJob(program, self.reference, self.functions, self.tests)

    def chat_job(self, response: str) -> tuple[SandboxJob, bool]:
        """The program in a chat model's response with its tests, and whether it was in a Markdown code fence."""
        code, fenced = code_of(response, self.functions)
        if defines(code, self.functions):
            return replace(self.job(""), program=self.context + code), fenced
        return self.job(code), fenced

    def truncate(self, text: str) -> str:
        """The completion in a model's output: the text before the first stop string, and `ending`."""
        ends = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        return (text[: min(ends)] if ends else text) + self.ending


def read_problems(task: str, path: Path) -> list[Problem]:
    """The problems of a file of `task`, one of TASKS: .jsonl or a JSON array, plain or .gz.

    Raises DataError for an unreadable file or an invalid record (the message names place and field), ConfigError for an
    unknown task.
    """
    if task not in TASKS:
        raise ConfigError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    problems: dict[str, Problem] = {}
    unread: Counter[str] = Counter()
    for place, record in _records(path):
        try:
            _require_python(record)
            problem = TASKS[task](record)
        except KeyError as error:
            raise DataError(f"{place}: a problem of {task} needs the field {error}") from None
        except (AttributeError, TypeError, SyntaxError, ValueError) as error:
            raise DataError(f"{place}: not a problem of {task} ({error})") from None
        if problem.task_id in problems:
            raise DataError(f"{place}: the task_id {problem.task_id} occurs twice")
        problems[problem.task_id] = problem
        unread.update(name for name in record if name not in FIELDS[task])
    if not problems:
        raise DataError(f"{path} holds no problem")
    log_unread(path, unread)
    return list(problems.values())


def prompt_hash(problems: Sequence[Problem], chat: bool = False) -> str:
    """SHA-256 of all prompts (with `chat`, of all questions), in order."""
    asked = [[p.task_id, p.question] if chat else [p.task_id, p.prompt, p.suffix] for p in problems]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _humaneval(record: dict[str, Any]) -> Problem:
    """HumanEval (arXiv 2107.03374): continue a function from its signature and docstring."""
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
        question="Complete this Python function. Answer with the whole function, and the imports that it needs, in one "
        f"Markdown code block.\n\n```python\n{prompt.strip()}\n```",
        context=_before(prompt, record["entry_point"]),
    )


def _before(prompt: str, function: str) -> str:
    """The text before the last definition of `function`."""
    starts = [match.start() for match in re.finditer(rf"^(?:async )?def {re.escape(function)}\b", prompt, re.MULTILINE)]
    return prompt[: starts[-1]] if starts else ""


def _humaneval_infilling(record: dict[str, Any]) -> Problem:
    """Fill in a line, several lines or a random span of a function (Bavarian et al., arXiv 2207.14255).

    The model ends the middle with end-of-text; a single line also ends at the newline.
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
    text = record["text"] if "text" in record else record["prompt"]
    return Problem(
        task_id=str(record["task_id"]),
        prompt="\n".join(['"""', text, *tests, '"""', ""]),
        prefix="",
        suffix=None,
        reference=code,
        solution=code,
        functions=tuple(sorted(defined & used)),
        tests=source,
        stop=MBPP_STOP,
        question="\n".join([text, "It must pass these tests:", "", "```python", *tests, "```", "", _WHOLE_PROGRAM]),
    )


def _require_python(record: dict[str, Any]) -> None:
    """Raise ValueError for a problem in another language, as in HumanEval-X and MultiPL-E."""
    if (language := str(record.get("language", "python")).lower()) not in ("python", "py", "python3"):
        raise ValueError(f"its language is {language}, but only Python programs can be run")


TASKS = {"humaneval": _humaneval, "humaneval_infilling": _humaneval_infilling, "mbpp": _mbpp}
"""{name of a set: function that turns a record into a problem}."""

_OF_HUMANEVAL = {"task_id", "prompt", "canonical_solution", "entry_point", "test", "language"}
FIELDS = {
    "humaneval": _OF_HUMANEVAL,
    "humaneval_infilling": _OF_HUMANEVAL | {"suffix"},
    "mbpp": {"task_id", "text", "prompt", "code", "test_list", "test_setup_code", "test_imports", "language"},
}
"""Fields that are read, by set; the log names other fields of the records."""


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place for error messages, record) of every record."""
    text = read_text(path, "problems")
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
