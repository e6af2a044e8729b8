"""The functions of Python source and their docstrings, by its syntax tree."""

import ast
import warnings
from collections.abc import Iterator

from megagpt.data.pair_sources.functions import Function

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def python_functions(source: str) -> Iterator[Function]:
    """Functions of a module and methods of its classes. Raises SyntaxError where Python would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in other people's strings
        try:
            tree = ast.parse(source)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from None
    lines = source.encode().split(b"\n")  # the tree's columns are bytes
    for node in _definitions(tree):
        first = min((decorator.lineno for decorator in node.decorator_list), default=node.lineno)
        docstring = ast.get_docstring(node)
        parts = _without_docstring(lines, node) if docstring else lines[node.lineno - 1 : node.end_lineno]
        if parts is not None:
            parts = lines[first - 1 : node.lineno - 1] + parts
        yield Function(
            name=node.name,
            line=node.lineno,
            docstring=docstring or "",
            code=None if parts is None else _dedented(parts, node.col_offset),
            trivial=_is_trivial(node.body[1:] if docstring else node.body),
        )


def _definitions(tree: ast.Module) -> Iterator[Definition]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop(0)):
            if isinstance(node, Definition):
                yield node
            elif isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With):
                waiting.append(node)


def _without_docstring(lines: list[bytes], node: Definition) -> list[bytes] | None:
    """The lines of a definition without its docstring; None where they hold other code as well."""
    text = node.body[0]
    before = lines[text.lineno - 1][: text.col_offset]
    after = lines[text.end_lineno - 1][text.end_col_offset :].strip()
    if before.strip() or (after and not after.startswith(b"#")):
        return None
    rest = lines[text.end_lineno : node.end_lineno]
    while rest and not rest[0].strip():
        rest = rest[1:]
    return lines[node.lineno - 1 : text.lineno - 1] + rest


def _dedented(lines: list[bytes], indent: int) -> str:
    """Lines of code without `indent` columns, which the inside of a string may not have."""
    cut = [line[indent:] if not line[:indent].strip() else line for line in lines]
    return "\n".join(line.decode().rstrip() for line in cut)


def _is_trivial(body: list[ast.stmt]) -> bool:
    """Nothing, `pass`, `...`, a refusal, or one statement that only returns or stores a name or constant."""
    if len(body) > 1:
        return False
    plain = (ast.Constant, ast.Name, ast.Attribute)
    match body[0] if body else ast.Pass():
        case ast.Pass() | ast.Raise():
            return True
        case ast.Expr(value=value):
            return isinstance(value, ast.Constant)
        case ast.Return(value=value) | ast.Assign(value=value):
            return value is None or isinstance(value, plain)
    return False
