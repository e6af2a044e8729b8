"""The API reference as Markdown pages, one a package, read from the source: nothing is imported.

tools/build_docs.py writes the pages into the site. They have the public classes, functions, methods and fields, and the
documented constants, of every module. Names that begin with an underscore are left out.
"""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"megagpt": ROOT / "megagpt", "megagpt.kernels": ROOT / "kernels"}
"""Dotted name and folder of what is documented; setup.py installs kernels/ as megagpt.kernels."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def pages() -> dict[str, str]:
    """{dotted name of a package: its page}, in alphabetical order. Every module belongs to the page of its package."""
    modules: dict[str, dict[str, Path]] = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            if parts[-1] == "__main__" or not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
                continue
            whole = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if whole else parts)
            modules.setdefault(".".join(parts[:-1]), {})[name] = path
    return {package: page(package, modules[package]) for package in sorted(modules)}


def page(package: str, modules: dict[str, Path]) -> str:
    """A package's page: its own docstring, then every module."""
    lines = [f"# {package}", ""]
    for name, path in sorted(modules.items(), key=lambda one: (one[0] != package, one[0])):
        tree = with_whole_names(ast.parse(path.read_text(encoding="utf-8")), name)
        if name != package:
            lines += [f"## {name.removeprefix(package + '.')}", ""]
        lines += [f"```{{py:module}} {name}", "```", "", prose(ast.get_docstring(tree) or ""), "", *members(tree)]
    return "\n".join(lines) + "\n"


def with_whole_names(tree: ast.Module, module: str) -> ast.Module:
    """The annotations of a module with dotted names for the classes of megagpt, by which Sphinx links them."""
    names = {node.name: f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "megagpt":
            names |= {alias.asname or alias.name: home(node.module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            for name in ast.walk(getattr(node, field, None) or ast.Pass()):
                if isinstance(name, ast.Name):
                    name.id = names.get(name.id, name.id)
    return tree


def home(module: str, name: str) -> str:
    """The dotted name by which the module that defines a class calls it; `module` may itself only import it."""
    elsewhere = _imported(module).get(name)
    return home(*elsewhere) if elsewhere else f"{module}.{name}"


@cache
def _imported(module: str) -> dict[str, tuple[str, str]]:
    """{name: (module, name there)} of what a module imports from others of megagpt."""
    package = max((one for one in PACKAGES if f"{module}.".startswith(f"{one}.")), key=len, default="")
    path = PACKAGES[package].joinpath(*module.removeprefix(package).split(".")[1:]) if package else Path()
    file = next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)
    body = ast.parse(file.read_text(encoding="utf-8")).body if file else []
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "megagpt"
        for alias in node.names
    }


def members(tree: ast.Module) -> Iterator[str]:
    """Directives of the public names of a module."""
    for node, text in documented(tree.body):
        if isinstance(node, ast.ClassDef):
            yield from of_class(node)
        elif isinstance(node, Function):
            yield from directive("py:function", signature(node), ast.get_docstring(node) or "")
        elif text:
            yield from of_value("py:data", node, text)


def of_class(node: ast.ClassDef) -> Iterator[str]:
    """A class with its fields, properties and methods."""
    inside: list[str] = []
    init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    for member, text in documented(node.body):
        if isinstance(member, Function):
            kinds = {ast.unparse(one).split("(")[0] for one in member.decorator_list}
            said = ast.get_docstring(member) or ""
            if kinds & {"property", "cached_property", "functools.cached_property"}:
                result = [f":type: {json.dumps(ast.unparse(member.returns))}"] if member.returns else []
                inside += directive("py:property", member.name, said, options=result)
            else:
                options = [f":{kind}:" for kind in ("classmethod", "staticmethod") if kind in kinds]
                inside += directive("py:method", signature(member, bound="staticmethod" not in kinds), said, options)
        elif not isinstance(member, ast.ClassDef):
            inside += of_value("py:attribute", member, text)
    head = signature(init, bound=True, name=node.name, result=False) if init else node.name
    yield from directive("py:class", head, ast.get_docstring(node) or "", inside=inside)


def documented(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """Public definitions and values of a module or class, each with the string that stands under it."""
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | Function):
            name = node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        else:
            continue
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
        if not name.startswith("_"):
            yield node, " ".join(text.split()) if isinstance(text, str) else ""


def of_value(kind: str, node: ast.stmt, text: str) -> list[str]:
    """A field or constant with its type and its value, where that is short."""
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    options = [f":type: {json.dumps(ast.unparse(node.annotation))}"] if isinstance(node, ast.AnnAssign) else []
    value = ast.unparse(node.value) if node.value else ""
    if value and len(value) <= 60 and "\n" not in value:
        options.append(f":value: {json.dumps(value)}")
    return directive(kind, target.id, text, options)


def signature(node: Function, bound: bool = False, name: str = "", result: bool = True) -> str:
    """name(arguments) -> result, without the first argument of a method."""
    arguments = ast.arguments(**{field: getattr(node.args, field) for field in ast.arguments._fields})
    if bound:
        before = arguments.posonlyargs or arguments.args
        arguments.posonlyargs, arguments.args = (
            (before[1:], arguments.args) if arguments.posonlyargs else ([], before[1:])
        )
    returned = f" -> {ast.unparse(node.returns)}" if result and node.returns else ""
    return f"{name or node.name}({ast.unparse(arguments)}){returned}"


def directive(kind: str, head: str, text: str, options: list[str] | None = None, inside: list[str] | None = None):
    """A MyST directive; its fence is longer than those inside it."""
    fence = "`" * (6 if inside else 5)
    return [f"{fence}{{{kind}}} {head}", *(options or []), "", prose(text), "", *(inside or []), fence, ""]


def prose(text: str) -> str:
    """A docstring as Markdown: outside code, signs that Markdown would take for its own are escaped."""
    lines, code = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            code = not code
        lines.append(line if code or line.startswith("    ") else escaped(line))
    return "\n".join(lines)


def escaped(line: str) -> str:
    """One line; spans between backticks stay as they are."""
    spans = re.split(r"(`[^`]*`)", line)
    spans = [one if number % 2 else re.sub(r"([\[\]<*{|$])", r"\\\1", one) for number, one in enumerate(spans)]
    return re.sub(r"^(\s*)([#>+=])", r"\1\\\2", "".join(spans))
