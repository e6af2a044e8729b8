"""Find functions and their docstrings in Python source, by its syntax tree."""

import ast
import warnings
from collections.abc import Iterator

from megagpt.data.pair_sources.functions import Function

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def python_functions(source: str) -> Iterator[Function]:
    """Functions of a module and methods of its classes. Raises SyntaxError for source that Python cannot parse."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")  # line numbers of the tree must fit split("\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as invalid escapes in the parsed source
        try:
            tree = ast.parse(source)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from None
    lines = source.encode().split(b"\n")  # the tree's columns are bytes
    for node in _definitions(tree):
        docstring = ast.get_docstring(node)
        rows = _rows(lines, node, has_docstring=bool(docstring))
        yield Function(
            name=node.name,
            line=node.lineno,
            docstring=docstring or "",
            code=None if rows is None else _dedented(lines, rows, node),
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


def _rows(lines: list[bytes], node: Definition, has_docstring: bool) -> list[int] | None:
    """Numbers from 0 of a definition's lines without its docstring; None if a line of the docstring has code too."""
    first = min((decorator.lineno for decorator in node.decorator_list), default=node.lineno) - 1
    if not has_docstring:
        return list(range(first, node.end_lineno))
    text = node.body[0]
    before = lines[text.lineno - 1][: text.col_offset]
    after = lines[text.end_lineno - 1][text.end_col_offset :].strip()
    if before.strip() or (after and not after.startswith(b"#")):
        return None
    following = text.end_lineno
    while following < node.end_lineno and not lines[following].strip():
        following += 1
    return [*range(first, text.lineno - 1), *range(following, node.end_lineno)]


def _dedented(lines: list[bytes], rows: list[int], node: Definition) -> str:
    """The lines `rows` without the definition's indentation; lines inside strings are unchanged."""
    inside: set[int] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Constant | ast.JoinedStr) and part.end_lineno > part.lineno:
            inside.update(range(part.lineno, part.end_lineno))
    cut = [lines[row] if row in inside else _without_indent(lines[row], node.col_offset) for row in rows]
    return b"\n".join(cut).decode()


def _without_indent(line: bytes, indent: int) -> bytes:
    return (line[indent:] if not line[:indent].strip() else line).rstrip()


def _is_trivial(body: list[ast.stmt]) -> bool:
    """Whether a body is empty, `pass`, `...`, `raise`, or one statement that returns or stores a name or constant."""
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
