"""Find licences in source files' headers and in licence files, as SPDX expressions, and check if they are allowed."""

import re
from collections.abc import Collection, Sequence

from megagpt.config.nearest import nearest

HEADER_CHARACTERS = 5000
"""Number of first characters of a file in which its SPDX-License-Identifier is searched."""

UNKNOWN = "LicenseRef-unknown"
"""Licence of a licence file with unknown content."""

PERMISSIVE = (
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "ISC",
    "Zlib",
    "BSL-1.0",
    "Unlicense",
    "CC0-1.0",
    "PSF-2.0",
    "Python-2.0",
    "NCSA",
)
"""Licences that the word `permissive` allows: they require no more than a notice."""

FILE_NAME = re.compile(r"(?:un)?licen[cs]e|copying|copyright", re.IGNORECASE)
"""Beginning of the names of licence files."""

_PROGRAM = re.compile(r"\.(?!txt$|md$|rst$|html?$|mit$|apache\S*$|bsd$|gpl\S*$|lesser$|lib$)[a-z]\w*$", re.IGNORECASE)

# All phrases must be in the text, in any case and with any white space; more specific licences come first. The phrases
# include the line after the title, because the GNU licences mention each other's titles.
_PHRASES = (
    ("AGPL-3.0", ("gnu affero general public license version 3, 19 november 2007",)),
    ("LGPL-3.0", ("gnu lesser general public license version 3, 29 june 2007",)),
    ("LGPL-2.1", ("gnu lesser general public license version 2.1, february 1999",)),
    ("LGPL-2.0", ("gnu library general public license version 2, june 1991",)),
    ("GPL-3.0", ("gnu general public license version 3, 29 june 2007",)),
    ("GPL-2.0", ("gnu general public license version 2, june 1991",)),
    ("Apache-2.0", ("apache license version 2.0, january 2004",)),
    ("MPL-2.0", ("mozilla public license version 2.0",)),
    ("EPL-2.0", ("eclipse public license - v 2.0",)),
    ("EPL-1.0", ("eclipse public license - v 1.0",)),
    ("Python-2.0", ("python software foundation license version 2", "cnri")),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("CC-BY-SA-4.0", ("attribution-sharealike 4.0 international",)),
    ("CC-BY-4.0", ("attribution 4.0 international",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("BSL-1.0", ("boost software license - version 1.0",)),
    ("NCSA", ("university of illinois", "deal with the software without restriction")),
    ("Zlib", ("this software is provided 'as-is', without any express or implied warranty", "altered source versions")),
    ("MIT", ("permission is hereby granted, free of charge", "the above copyright notice and this permission notice")),
    ("MIT-0", ("permission is hereby granted, free of charge", "mit no attribution")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote products")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms", "binary form must reproduce")),
    ("ISC", ("distribute this software for any purpose with or without fee is hereby granted, provided that",)),
    ("0BSD", ("distribute this software for any purpose with or without fee is hereby granted.",)),
)
_HEADER = re.compile(
    r"^\W*SPDX-License-Identifier:[ \t]*([\w.+:() \t-]+?)[ \t]*(?:\*+/|-->|[*#]+)?[ \t]*\r?$", re.MULTILINE
)
_TOKEN = re.compile(r"\(|\)|[A-Za-z0-9.+:-]+")
_SPACES = re.compile(r"\s+")


def is_licence_file(name: str) -> bool:
    """Whether `name`, without folders, is the name of a licence file."""
    return bool(FILE_NAME.match(name)) and not _PROGRAM.search(name)


def header(text: str) -> str | None:
    """The SPDX expression at the beginning of a source file; None if there is none or it is malformed."""
    found = _HEADER.search(text[:HEADER_CHARACTERS])
    expression = " ".join(found[1].split()) if found else None
    return expression if expression and _value(expression, ()) is not None else None


def recognise(text: str) -> str:
    """The SPDX identifier of a licence's text; UNKNOWN if it is not one of the common licences."""
    plain = _SPACES.sub(" ", text[:60_000]).lower().replace("“", '"').replace("’", "'").replace("‘", "'")
    return next((name for name, phrases in _PHRASES if all(phrase in plain for phrase in phrases)), UNKNOWN)


def combine(texts: Sequence[str]) -> str | None:
    """The licence of a folder with these licence texts: several give a choice (OR); None without a text."""
    names = dict.fromkeys(map(recognise, texts))
    known = [name for name in names if name != UNKNOWN] or list(names)
    return " OR ".join(known) or None


def expand(allowed: Sequence[str]) -> frozenset[str]:
    """The allow-list in lower case, with all of PERMISSIVE in place of `permissive`."""
    names = [name for item in allowed for name in (PERMISSIVE if item.lower() == "permissive" else [item])]
    return frozenset(_base(name) for name in names)


def doubtful(allowed: Sequence[str]) -> dict[str, str]:
    """Unknown names in an allow-list that resemble a known one: {name: known name}."""
    known = {name.lower(): name for name in (*PERMISSIVE, *(name for name, _ in _PHRASES), "permissive")}
    likely = {name: nearest(name, known) for name in allowed if _base(name) not in known}
    return {name: known[other] for name, other in likely.items() if other}


def is_allowed(expression: str | None, allowed: Collection[str]) -> bool:
    """Whether `allowed` (see `expand`) satisfies the SPDX `expression`: every part of AND, some part of OR.

    An exception (WITH) only grants more rights, so the licence before it decides. None is not allowed.
    """
    return bool(expression and _value(expression, allowed))


def _value(expression: str, allowed: Collection[str]) -> bool | None:
    """Whether `allowed` satisfies the expression; None if it is not an SPDX expression."""
    try:
        value, rest = _either(_TOKEN.findall(expression), allowed)
    except (IndexError, RecursionError):
        return None
    return None if rest else value


def _either(tokens: list[str], allowed: Collection[str]) -> tuple[bool, list[str]]:
    value, rest = _both(tokens, allowed)
    while rest and rest[0].upper() == "OR":
        other, rest = _both(rest[1:], allowed)
        value = value or other
    return value, rest


def _both(tokens: list[str], allowed: Collection[str]) -> tuple[bool, list[str]]:
    value, rest = _one(tokens, allowed)
    while rest and rest[0].upper() == "AND":
        other, rest = _one(rest[1:], allowed)
        value = value and other
    return value, rest


def _one(tokens: list[str], allowed: Collection[str]) -> tuple[bool, list[str]]:
    if tokens[0] == "(":
        value, rest = _either(tokens[1:], allowed)
        if rest[0] != ")":
            raise IndexError
        return value, rest[1:]
    if tokens[0] == ")" or tokens[0].upper() in ("AND", "OR", "WITH"):
        raise IndexError
    rest = tokens[1:]
    return _base(tokens[0]) in allowed, rest[2:] if rest and rest[0].upper() == "WITH" else rest


def _base(name: str) -> str:
    """GPL-2.0-only, GPL-2.0-or-later and GPL-2.0+ count as GPL-2.0."""
    return re.sub(r"(?:-only|-or-later|\+)$", "", name.lower())
