"""Find functions and the comments above them in languages other than Python, with tree-sitter's parsers.

The grammar of each language is in a separate wheel. (tree-sitter-language-pack downloads grammars at their first use,
which fails on a machine without a network.)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from megagpt.data.pair_sources.docstrings import comment_text
from megagpt.data.pair_sources.functions import Function
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser


@dataclass(frozen=True)
class Grammar:
    """The grammar of a language, and its node types for functions."""

    module: str
    """Module of the wheel."""
    functions: frozenset[str]
    """Node types of functions in the syntax tree."""
    entry: str = "language"
    """The module's function that returns the grammar."""


_FIELDS = ("field_definition", "public_field_definition")
_SCRIPT = frozenset(
    {
        "function_declaration",
        "generator_function_declaration",
        "method_definition",
        "lexical_declaration",
        *_FIELDS,
    }
)
_VALUES = ("arrow_function", "function_expression", "generator_function")
"""Functions as values: a declaration of a variable or field with such a value counts as a function."""

GRAMMARS = {
    "javascript": Grammar("tree_sitter_javascript", _SCRIPT),
    "typescript": Grammar("tree_sitter_typescript", _SCRIPT, "language_typescript"),
    "tsx": Grammar("tree_sitter_typescript", _SCRIPT, "language_tsx"),
    "java": Grammar("tree_sitter_java", frozenset({"method_declaration", "constructor_declaration"})),
    "go": Grammar("tree_sitter_go", frozenset({"function_declaration", "method_declaration"})),
    "ruby": Grammar("tree_sitter_ruby", frozenset({"method", "singleton_method"})),
    "php": Grammar("tree_sitter_php", frozenset({"function_definition", "method_declaration"}), "language_php"),
    "rust": Grammar("tree_sitter_rust", frozenset({"function_item"})),
    "c": Grammar("tree_sitter_c", frozenset({"function_definition"})),
    "c++": Grammar("tree_sitter_cpp", frozenset({"function_definition"})),
    "c#": Grammar("tree_sitter_c_sharp", frozenset({"method_declaration", "constructor_declaration"})),
}
"""Grammars by the names of languages in megagpt.data.corpus.code.languages, and "tsx" for .tsx files."""

LANGUAGES = tuple(name for name in GRAMMARS if name != "tsx")

_WRAPPERS = {"export_statement", "template_declaration"}
_ABOVE = {"attribute_item", "decorator"}
"""Nodes before a function that belong to it."""
_SIMPLE = re.compile(r"(?:return\b)?[\s\w.$@\->\"'&*:]*(?:=[\s\w.$@\->\"'&*:]*)?;?\s*")
"""A statement without a call or computation."""


def parsed_functions(source: str, language: str) -> Iterator[Function]:
    """The functions of a file, even if other parts of it have errors.

    language: a key of GRAMMARS

    Raises ConfigError when the grammar is not installed.
    """
    content = source.encode()
    tree, grammar = _parser(language).parse(content), GRAMMARS[language]
    lines = content.split(b"\n")
    nodes, comments = _nodes(tree.root_node, grammar), {}
    functions = []
    for node in nodes:
        if "comment" in node.type:
            if not lines[node.start_point.row][: node.start_point.column].strip():
                last = node.start_point.row + node.text.rstrip().count(b"\n")
                comments[last] = node
        else:
            functions.append(node)
    for node in functions:
        if node.has_error:
            continue
        first, last = _around(node)
        code = content[first.start_byte : last.end_byte].decode(errors="replace")
        yield Function(
            name=_name(node),
            line=node.start_point.row + 1,
            docstring=_comment_above(first.start_point.row, comments),
            code=_dedented(code, first.start_point.column),
            trivial=_is_trivial(node),
        )


@cache
def _parser(language: str) -> "Parser":
    grammar = GRAMMARS[language]
    try:
        from tree_sitter import Language, Parser

        module = import_module(grammar.module)
    except ImportError:
        raise ConfigError(
            f"functions of {language} are found by {grammar.module.replace('_', '-')}, which is not installed: "
            'pip install "megagpt[embeddings]", or leave the language out of --languages'
        ) from None
    return Parser(Language(getattr(module, grammar.entry)()))


def _nodes(root: "Node", grammar: Grammar) -> "Iterator[Node]":
    """Comments and functions outside other functions, in the order of the file."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if "comment" in node.type or (node.type in grammar.functions and _body(node) is not None):
            yield node
        else:
            waiting += reversed(node.children)


def _body(node: "Node") -> "Node | None":
    """Body of a function, or of the function that is the value of a declaration; None if there is none."""
    if node.type in ("lexical_declaration", *_FIELDS):
        holder = node if node.type != "lexical_declaration" else next(iter(node.named_children), node)
        value = holder.child_by_field_name("value")
        return value.child_by_field_name("body") if value is not None and value.type in _VALUES else None
    return node.child_by_field_name("body")


def _around(node: "Node") -> "tuple[Node, Node]":
    """First and last node of a function with its `export`, `template <...>`, attributes and decorators."""
    while node.parent is not None and node.parent.type in _WRAPPERS:
        node = node.parent
    first = node
    while first.prev_sibling is not None and first.prev_sibling.type in _ABOVE:
        first = first.prev_sibling
    return first, node


def _name(node: "Node") -> str:
    if node.type == "lexical_declaration":
        node = node.named_children[0]
    found = node.child_by_field_name("name") or node.child_by_field_name("property")
    while found is None and (node := node.child_by_field_name("declarator")) is not None:  # C's, from outside in
        found = node if node.type in ("identifier", "field_identifier", "qualified_identifier") else None
    return found.text.decode(errors="replace") if found else ""


def _comment_above(row: int, comments: "dict[int, Node]") -> str:
    """The text of the comments directly above `row`, without a gap between them."""
    found: list[str] = []
    while (comment := comments.get(row - 1)) is not None:
        block = comment.text.lstrip().startswith((b"/*", b"=begin"))
        if found and block:
            break  # a block is a separate comment
        found.insert(0, comment.text.decode(errors="replace").rstrip())
        row = comment.start_point.row
        if block:
            break
    return comment_text("\n".join(found))


def _dedented(code: str, indent: int) -> str:
    first, *rest = code.split("\n")
    return "\n".join([first.rstrip(), *(_unindented(line, indent).rstrip() for line in rest)])


def _unindented(line: str, indent: int) -> str:
    return line[indent:] if not line[:indent].strip() else line


def _is_trivial(node: "Node") -> bool:
    body = _body(node)
    if body.type not in ("block", "statement_block", "compound_statement", "body_statement", "constructor_body"):
        return bool(_SIMPLE.fullmatch(body.text.decode(errors="replace")))  # an arrow function's expression
    statements = [child for child in body.named_children if "comment" not in child.type]
    if len(statements) == 1 and statements[0].type == "statement_list":  # Go's
        statements = statements[0].named_children
    texts = [child.text.decode(errors="replace") for child in statements]
    return not texts or (len(texts) == 1 and bool(_SIMPLE.fullmatch(texts[0])))
