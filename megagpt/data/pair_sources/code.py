"""Pairs of a function and its docstring, or the comment above the function (arXiv 2201.10005, section 2)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from megagpt.data.corpus.code.languages import language_of
from megagpt.data.corpus.code.rules import Limits, generated
from megagpt.data.pair_sources.docstrings import is_prose, summary, words
from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.functions import Function
from megagpt.data.pair_sources.parsed_functions import LANGUAGES as PARSED
from megagpt.data.pair_sources.parsed_functions import parsed_functions
from megagpt.data.pair_sources.python_functions import python_functions
from megagpt.data.pair_sources.records import Record
from megagpt.data.pairs import folded
from megagpt.errors import ConfigError

LANGUAGES = ("python", *PARSED)
"""Languages with a parser for functions."""

REPOSITORY_KEYS = ("repository", "repo", "repo_name", "repository_name", "max_stars_repo_name")
"""Fields for the repository of a file in public corpora of code."""
PATH_KEYS = ("path", "file_path", "max_stars_repo_path", "func_path_in_repository")
"""Fields for the path of a file in public corpora of code."""

_TEST_FOLDERS = {"test", "tests", "testing", "__tests__", "spec", "specs", "idle_test", "testdata"}
_TEST_FILE = re.compile(r"(?:^|[_.-])(?:test|tests|spec)(?:[_.-]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Functions:
    """Criteria for functions, and the part of the docstring to use. Raises ConfigError for invalid values."""

    languages: tuple[str, ...] = LANGUAGES
    docstring: Literal["first", "whole"] = "first"
    """Use the first paragraph on one line, or the whole docstring."""
    min_words: int = 3
    """Smallest number of words in the docstring."""
    min_lines: int = 3
    """Smallest number of lines of code, without blank lines and docstring."""
    max_lines: int = 150
    """Largest number of such lines."""
    tests: bool = False
    """Whether tests are taken too."""

    def __post_init__(self) -> None:
        """Check the values."""
        if unknown := [name for name in self.languages if name not in LANGUAGES]:
            raise ConfigError(f"--languages {', '.join(unknown)}: functions are found in {', '.join(LANGUAGES)}")
        if not 1 <= self.min_lines <= self.max_lines:
            raise ConfigError(f"--min-lines {self.min_lines} and --max-lines {self.max_lines}: the second is smaller")


@dataclass(frozen=True)
class SourceText:
    """A file of source code."""

    text: str
    path: str
    language: str | None
    unit: str
    """Its repository or, if unknown, the top-level folder or module. Each unit is in one split only."""


def source_text(
    record: Record, key: str, inputs: Sequence[str | Path], languages: Sequence[str] = LANGUAGES
) -> SourceText | str:
    """The source file in a record, or the reason why it has none.

    key: field of the source in JSON objects
    inputs: the inputs of the command; a file's unit is relative to them
    languages: if there is only one, it is the language of records without path and language
    """
    value = record.value
    if isinstance(value, str):
        inside = _below_input(Path(record.path), inputs)
        return SourceText(value, record.path, language_of(inside.name, value), _top_level(inside))
    if not isinstance(value, dict):
        return "record that is not a JSON object"
    text = value.get(key, value.get("content"))
    if not isinstance(text, str) or not text.strip():
        return f"record without source code under {key!r}"
    path = _first_text(value, PATH_KEYS)
    given, known = (
        value.get("language"),
        language_of(path, text) if path else languages[0] if len(languages) == 1 else None,
    )
    language = given.lower() if isinstance(given, str) and given else known
    repository = _first_text(value, REPOSITORY_KEYS)
    unit = repository or (_top_level(PurePosixPath(path)) if path else record.place)
    return SourceText(text, f"{repository}/{path}" if repository and path else path or record.place, language, unit)


def _first_text(value: dict[str, Any], keys: Sequence[str]) -> str:
    return next((value[key] for key in keys if isinstance(value.get(key), str) and value[key]), "")


def _below_input(path: Path, inputs: Sequence[str | Path]) -> PurePosixPath:
    """The path of a file that begins with the name of the input folder, as in a corpus of source code."""
    for root in map(Path, inputs):
        if root.is_dir() and path.is_relative_to(root):
            return PurePosixPath(root.resolve().name, path.relative_to(root).as_posix())
    return PurePosixPath(path.name)


def _top_level(path: PurePosixPath) -> str:
    """The input's name and the first folder in it, or the module if the file is directly in the input."""
    first, *rest = path.parts
    if len(rest) > 1:
        return f"{first}/{rest[0]}"
    return "/".join([first, rest[0].partition(".")[0] or rest[0]]) if rest else first.partition(".")[0] or first


def code_pairs(source: SourceText, options: Functions, tally: Tally) -> Iterator[FoundPair]:
    """The pairs of a file. `tally` counts omitted files and functions."""
    if source.language not in options.languages:
        known = f"language: {source.language}" if source.language in LANGUAGES else None
        reason = known or (f"no parser for {source.language}" if source.language else "language not known")
        tally.drop(f"file: {reason}", source.path)
        return
    if reason := _unwanted_file(source, options):
        tally.drop(f"file: {reason}", source.path)
        return
    try:
        functions = list(_functions(source))
    except SyntaxError as error:
        tally.drop("file: not Python 3", f"{source.path}: {error.msg}")
        return
    for function in functions:
        tally.read["functions"] += 1
        query = summary(function.docstring) if options.docstring == "first" else function.docstring.strip()
        if reason := _unwanted(function, query, options):
            tally.drop(f"function: {reason}", f"{source.path}:{function.line}")
        else:
            yield FoundPair(query, function.code.strip("\n"), document=source.path, split_key=source.unit)


def _functions(source: SourceText) -> Iterator[Function]:
    if source.language == "python":
        return python_functions(source.text)
    return parsed_functions(source.text, "tsx" if source.path.lower().endswith(".tsx") else source.language)


def _unwanted_file(source: SourceText, options: Functions) -> str | None:
    path = PurePosixPath(source.path)
    if not options.tests and (
        _TEST_FOLDERS & {part.lower() for part in path.parts[:-1]} or _TEST_FILE.search(path.stem)
    ):
        return "tests"
    return "generated by a program" if generated(source.text, Limits()) else None


def _unwanted(function: Function, query: str, options: Functions) -> str | None:
    """The reason why a function gives no pair; None if it gives one."""
    if not function.docstring:
        return "no docstring"
    if function.code is None:
        return "docstring on a line with code"
    if not options.tests and function.name.lower().startswith("test"):
        return "test"
    if words(query) < options.min_words:
        return "docstring too short"
    if not is_prose(query):
        return "docstring that is not a description"
    if function.trivial:
        return "trivial"
    lines = sum(1 for line in function.code.split("\n") if line.strip())
    if not options.min_lines <= lines <= options.max_lines:
        return "too short" if lines < options.min_lines else "too long"
    if folded(query) in folded(function.code):
        return "docstring repeated in the code"
    return None
