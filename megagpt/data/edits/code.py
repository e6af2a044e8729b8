"""Edits of Python functions. Each raises NotApplicableError if it would change nothing."""

import ast
import io
import keyword
import random
import re
import tokenize
from collections.abc import Callable

from megagpt.data.edits.edit import Edit, NotApplicableError, pick

_NEW_NAMES = ("value", "item", "count", "total", "result", "data", "index", "name", "size", "entry", "first", "last")
_NOTES = ("TODO: add a test", "handles the empty case", "see the documentation", "this is slow", "called once")


def rename(source: str, rng: random.Random) -> Edit:
    """Rename an argument or a local variable at all its places, and only there."""
    tree = ast.parse(source)
    old = pick(rng, sorted(local_names(tree)))
    used = {token.string for token in _tokens(source) if token.type == tokenize.NAME}
    new = pick(rng, [name for name in _NEW_NAMES if name not in used])
    output = replace_names(source, old, new)
    if ast.dump(_Renamer(old, new).visit(ast.parse(source))) != ast.dump(ast.parse(output)):
        raise NotApplicableError  # the name is also an attribute or a keyword somewhere
    asked = [f"Rename {old} to {new}.", f"Rename the variable {old} to {new}.", f"Call {old} {new} instead."]
    return Edit("rename", pick(rng, asked), source, output)


def local_names(tree: ast.Module) -> set[str]:
    """Local arguments and variables of the functions of `tree` whose names are not attributes or keywords of calls."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global | ast.Nonlocal):
            names -= set(node.names)
        elif isinstance(node, ast.keyword | ast.Attribute):
            names.discard(node.arg if isinstance(node, ast.keyword) else node.attr)
    return names - {"self", "cls", "_"}


def remove_comments(source: str, rng: random.Random) -> Edit:
    """Remove all comments, and the lines that have only a comment."""
    lines = source.split("\n")
    found = [token for token in _tokens(source) if token.type == tokenize.COMMENT]
    if not found:
        raise NotApplicableError
    for token in found:
        row, column = token.start
        lines[row - 1] = lines[row - 1][:column].rstrip() or "\0"
    output = "\n".join(line for line in lines if line != "\0")
    asked = ["Remove the comments.", "Delete all comments.", "Take the comments out."]
    return Edit("remove_comments", pick(rng, asked), source, output)


def add_comment(source: str, rng: random.Random) -> Edit:
    """Add a comment above the function."""
    note = pick(rng, list(_NOTES))
    asked = [f"Add the comment '{note}' at the top.", f"Put the comment '{note}' above the function."]
    return Edit("add_comment", pick(rng, asked), source, f"# {note}\n{source}")


def remove_docstring(source: str, rng: random.Random) -> Edit:
    """Remove the docstring of the function."""
    function = ast.parse(source).body[0]
    if not isinstance(function, ast.FunctionDef) or not ast.get_docstring(function) or len(function.body) < 2:
        raise NotApplicableError
    lines, text = source.split("\n"), function.body[0]
    following = function.body[1].lineno - 1
    while following > text.end_lineno and lines[following - 1].lstrip().startswith("#"):
        following -= 1
    output = "\n".join(lines[: text.lineno - 1] + lines[following:])
    asked = ["Remove the docstring.", "Delete the docstring.", "Take the docstring out."]
    return Edit("remove_docstring", pick(rng, asked), source, output)


def sort_imports(source: str, rng: random.Random) -> Edit:
    """Put import lines in alphabetical order."""
    lines = [f"import {name}" for name in sorted(set(re.findall(r"(?<![.\w])([a-z][a-z_]+)\.", source)))]
    lines = [line for line in lines if not keyword.iskeyword(line[7:]) and line[7:] not in ("self", "cls")]
    if len(lines) < 2:
        raise NotApplicableError
    shuffled = rng.sample(lines, len(lines))
    asked = ["Sort the imports.", "Put the imports in alphabetical order."]
    return Edit("sort_imports", pick(rng, asked), "\n".join(shuffled), "\n".join(lines))


class _Renamer(ast.NodeTransformer):
    """Renames variables and arguments."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.new, node.ctx) if node.id == self.old else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self.generic_visit(node)
        return ast.arg(self.new, node.annotation, node.type_comment) if node.arg == self.old else node


def replace_names(source: str, old: str, new: str) -> str:
    """`source` with every name `old` replaced by `new`, including attributes and keywords."""
    lines = source.split("\n")
    for token in reversed(_tokens(source)):
        if token.type == tokenize.NAME and token.string == old:
            row, column = token.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + new + line[column + len(old) :]
    return "\n".join(lines)


def _tokens(source: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


CODE_KINDS: dict[str, Callable[[str, random.Random], Edit]] = {
    function.__name__: function for function in (rename, remove_comments, add_comment, remove_docstring, sort_imports)
}
"""Edits of source by name."""


def functions_in(source: str, max_chars: int) -> list[str]:
    """The source, without indentation, of every function of at most `max_chars` characters; [] for invalid source."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            indent = node.col_offset
            body = lines[node.lineno - 1 : node.end_lineno]
            if all(line[:indent].strip() == "" for line in body):
                text = "\n".join(line[indent:].rstrip() for line in body)
                if len(text) <= max_chars and _stands_alone(text):
                    found.append(text)
    return found


def prose_of(document: str) -> str:
    """The docstrings of Python source with blank lines between them; any other document unchanged."""
    try:
        tree = ast.parse(document)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return document
    holders = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    texts = [ast.get_docstring(node) for node in holders]
    return "\n\n".join(text for text in texts if text)


def _stands_alone(source: str) -> bool:
    """Whether a dedented function is still valid; removing indentation may damage strings over several lines."""
    try:
        ast.parse(source)
        _tokens(source)
    except (SyntaxError, tokenize.TokenError):
        return False
    return "\t" not in source
