"""Read records of CodeSearchNet (arXiv 1909.09436): a function, its docstring and its repository."""

import textwrap
from typing import Any

from megagpt.data.pair_sources.docstrings import comment_text, summary
from megagpt.data.pair_sources.found import FoundPair
from megagpt.data.pair_sources.python_functions import python_functions

_CODE = ("original_string", "whole_func_string", "code", "func_code_string")
_DOCSTRING = ("docstring", "func_documentation_string")
_REPOSITORY = ("repo", "repository_name")
_PATH = ("path", "func_path_in_repository")

KEYS = (*_CODE, *_DOCSTRING, *_REPOSITORY, *_PATH, "language")


def fits(value: Any) -> bool:
    """Whether a record has a docstring and code."""
    return isinstance(value, dict) and any(key in value for key in _CODE) and any(key in value for key in _DOCSTRING)


def pairs(value: dict[str, Any], place: str, docstring: str) -> list[FoundPair]:
    """The pair of a record, [] if the docstring cannot be removed from the code.

    place: name of the record, for pairs without repository and path
    docstring: "first" for the first paragraph, else the whole docstring

    Raises ValueError for a malformed record.
    """
    code, said = _first(value, _CODE), _first(value, _DOCSTRING)
    if not code.strip() or not said.strip():
        raise ValueError("docstring or code is missing or empty")
    query = summary(comment_text(said)) if docstring == "first" else said.strip()
    if value.get("language", "python") == "python":
        try:
            functions = list(python_functions(textwrap.dedent(code)))
        except SyntaxError:
            functions = []  # Python 2
        code = next((function.code for function in functions if function.code and function.docstring), code)
    if not query or said.strip() in code:
        return []
    repository, path = _first(value, _REPOSITORY), _first(value, _PATH)
    document = f"{repository}/{path}" if repository and path else place
    return [FoundPair(query, code.strip("\n"), (), document, repository)]


def _first(value: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next((value[key] for key in keys if isinstance(value.get(key), str)), "")
