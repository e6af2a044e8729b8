"""Mistakes in functions: one change of the syntax tree that makes the function's tests fail."""

import ast
import copy
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

from megagpt.data.edits.code import local_names, replace_names
from megagpt.data.edits.edit import Edit, pick
from megagpt.data.edits.functions import FUNCTIONS, source_of

STEPS = 20_000
"""Largest number of lines that a function may run in all its tests. A function with a mistake may never end."""

_COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
_OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.Div: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
}
_HINTS = {
    "comparison": "The comparison is wrong.",
    "operator": "The operator is wrong.",
    "constant": "A number is wrong.",
    "logic": "The condition is wrong.",
    "return": "It returns nothing.",
    "order": "The arguments are in the wrong order.",
}


def mutants(source: str) -> list[tuple[str, str]]:
    """(kind of the mistake, a key of _HINTS; source with it) for every version of `source` with one mistake."""
    tree, found = ast.parse(source), []
    for position, node in enumerate(ast.walk(tree)):
        for kind, change in _changes(node):
            other = copy.deepcopy(tree)
            change(next(candidate for at, candidate in enumerate(ast.walk(other)) if at == position))
            found.append((kind, ast.unparse(other)))
    return [(kind, text) for kind, text in found if text != ast.unparse(tree)]


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """Mutations of a node: (kind, function that changes a node in place)."""
    if isinstance(node, ast.Compare):
        for other in _COMPARISONS.get(type(node.ops[0]), ()):
            yield "comparison", lambda n, other=other: n.ops.__setitem__(0, other())
    elif isinstance(node, ast.BinOp):
        for other in _OPERATORS.get(type(node.op), ()):
            yield "operator", lambda n, other=other: setattr(n, "op", other())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield "logic", lambda n: setattr(n, "op", other())
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        for step in (1, -1):
            yield "constant", lambda n, step=step: setattr(n, "value", n.value + step)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "return", lambda n: setattr(n, "value", None)
    elif isinstance(node, ast.Call) and len(node.args) == 2:
        yield "order", lambda n: n.args.reverse()


def passes(source: str, name: str, calls: tuple, expected: list[Any]) -> bool:
    """Whether a function returns the expected values within STEPS.

    It runs the source in this process, so the source must be a function of this package or its mutant.
    """
    space: dict[str, Any] = {}
    left = STEPS

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise TimeoutError
        return trace

    exec(compile(source, "<edit>", "exec"), space)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return all(
            _same(space[name](*copy.deepcopy(arguments)), value)
            for arguments, value in zip(calls, expected, strict=True)
        )
    except Exception:  # a mistake can raise any class
        return False
    finally:
        sys.settrace(before)


def _same(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and found == expected


class Broken(NamedTuple):
    """A function with a mistake that makes its tests fail."""

    mistake: str
    """Kind of the mistake, a key of _HINTS."""
    name: str
    right: str
    wrong: str
    tests: str


@cache
def broken_functions() -> tuple[Broken, ...]:
    """Every mutant that fails its function's tests."""
    found = []
    for function, calls in FUNCTIONS.items():
        name, source = function.__name__, source_of(function)
        expected = [function(*copy.deepcopy(arguments)) for arguments in calls]
        tests = "\n".join(
            f"assert {name}({', '.join(map(repr, arguments))}) == {value!r}"
            for arguments, value in zip(calls, expected, strict=True)
        )
        for kind, mutant in mutants(source):
            if not passes(mutant, name, calls, expected):
                found.append(Broken(kind, name, source, mutant, tests))
    return tuple(found)


def fix_bug(broken: Broken, rng: random.Random) -> Edit:
    """Repair a function with a mistake. Its variables are renamed at random."""
    right, wrong = broken.right, broken.wrong
    for old in sorted(local_names(ast.parse(right))):
        new = pick(rng, ["", "", f"{old}s" if not old.endswith("s") else f"my_{old}", old[0], f"the_{old}"])
        taken = {node.id for node in ast.walk(ast.parse(right)) if isinstance(node, ast.Name)} | {"print"}
        if new and new not in taken | local_names(ast.parse(right)) | {"_"}:
            right, wrong = replace_names(right, old, new), replace_names(wrong, old, new)
    asked = ["Fix the bug.", "Repair the function.", f"{_HINTS[broken.mistake]} Fix it.", "Find and fix the mistake."]
    return Edit("fix_bug", pick(rng, asked), wrong, right, broken.tests, broken.name)
