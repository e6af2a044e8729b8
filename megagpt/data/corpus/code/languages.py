"""Find the language of a source file by its name, and by its content where the name is ambiguous."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from megagpt.config.nearest import nearest
from megagpt.errors import ConfigError

EXTENSIONS = {
    "c": "c",
    "c++": "cc cpp cxx c++ hh hpp hxx h++ cu cuh",
    "c#": "cs",
    "clojure": "clj cljs cljc",
    "css": "css scss less",
    "dart": "dart",
    "elixir": "ex exs",
    "erlang": "erl hrl",
    "fortran": "f f90 f95 f03",
    "go": "go",
    "haskell": "hs",
    "html": "html htm xhtml",
    "java": "java",
    "javascript": "js mjs cjs jsx",
    "julia": "jl",
    "kotlin": "kt kts",
    "lua": "lua",
    "makefile": "mk mak",
    "objective-c": "mm",
    "ocaml": "ml mli",
    "perl": "pl pm",
    "php": "php phtml",
    "powershell": "ps1 psm1",
    "python": "py pyi pyw",
    "r": "r",
    "ruby": "rb",
    "rust": "rs",
    "scala": "scala sc",
    "shell": "sh bash zsh ksh",
    "sql": "sql",
    "swift": "swift",
    "typescript": "ts tsx mts cts",
}
"""Extensions of each language. The content of a file can still decide otherwise."""

LANGUAGES = sorted({*EXTENSIONS, "dockerfile", "matlab"})
"""Names of all known languages."""

ANY = frozenset(LANGUAGES)
"""Possible languages of a file whose name gives no hint."""

_BY_EXTENSION = {extension: name for name, extensions in EXTENSIONS.items() for extension in extensions.split()}
_BY_FILE_NAME = {"makefile": "makefile", "gnumakefile": "makefile", "dockerfile": "dockerfile", "rakefile": "ruby"}
_INTERPRETERS = {
    "bash": "shell",
    "dash": "shell",
    "deno": "typescript",
    "ksh": "shell",
    "lua": "lua",
    "make": "makefile",
    "node": "javascript",
    "perl": "perl",
    "php": "php",
    "pwsh": "powershell",
    "python": "python",
    "rscript": "r",
    "ruby": "ruby",
    "sh": "shell",
    "zsh": "shell",
}
_SHEBANG = re.compile(r"#!\s*(?:\S*/env\s+(?:-\S+\s+|\w+=\S*\s+)*)?(?:\S*/)?([A-Za-z]+)")
_MARKUP = re.compile(r"\s*<(?:\?xml|!doctype|html)\b", re.IGNORECASE)
_CPP = re.compile(
    r"^[ \t]*(?:template\s*<|namespace\b|class\s+\w+|using\s+\w|(?:public|private|protected):)|\bstd::", re.M
)
_OBJECTIVE_C = re.compile(r"^[ \t]*(?:@interface|@implementation|@protocol|@property|@class|#import)\b", re.M)
_MATLAB = re.compile(r"^[ \t]*(?:function\b|%|classdef\b|clear\b|close all)", re.M)
_PROLOG = re.compile(r"^(?:[a-z]\w*(?:\([^)]*\))?)?[ \t]*:-", re.M)

_OPEN = {".h": frozenset({"c", "c++", "objective-c"}), ".m": frozenset({"objective-c", "matlab"})}
_HEAD = 20_000


def check_languages(names: Sequence[str]) -> tuple[str, ...]:
    """`names` in lower case. Raises ConfigError when one of them is not in LANGUAGES."""
    for name in names:
        if name.lower() not in LANGUAGES:
            likely = nearest(name, LANGUAGES)
            hint = f"did you mean {likely}?" if likely else f"there are {', '.join(LANGUAGES)}"
            raise ConfigError(f"--languages: {name!r} is not known: {hint}")
    return tuple(name.lower() for name in names)


def may_be(name: str) -> frozenset[str]:
    """Possible languages of a file with this name; ANY for a name without extension."""
    path = PurePosixPath(name.lower())
    if path.stem in _BY_FILE_NAME and (not path.suffix or path.stem == "dockerfile"):
        return frozenset({_BY_FILE_NAME[path.stem]})
    if path.suffix in _OPEN:
        return _OPEN[path.suffix]
    if not path.suffix:
        return ANY if not path.name.startswith(".") else frozenset()
    language = _BY_EXTENSION.get(path.suffix[1:])
    return frozenset({language}) if language else frozenset()


def language_of(name: str, text: str) -> str | None:
    """The language of a file with this name and text; None if it is not in LANGUAGES."""
    possible, head = may_be(name), text[:_HEAD]
    suffix = PurePosixPath(name.lower()).suffix
    if suffix == ".h":
        return "objective-c" if _OBJECTIVE_C.search(head) else "c++" if _CPP.search(head) else "c"
    if suffix == ".m":
        return "objective-c" if _OBJECTIVE_C.search(head) else "matlab" if _MATLAB.search(head) else None
    if len(possible) > 1:
        found = _SHEBANG.match(head)
        return _INTERPRETERS.get(found[1].lower()) if found else None
    language = next(iter(possible), None)
    if language not in (None, "html", "php") and _MARKUP.match(head):
        return None  # such as a Qt translation named .ts, or a web page saved under a program's name
    if language == "perl" and suffix == ".pl" and _PROLOG.search(head) and "#!" not in head[:2]:
        return None
    return language
