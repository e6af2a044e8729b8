"""Languages of source files by name and content."""

from pathlib import Path

import pytest
from timing import cpu_seconds

from megagpt.data.corpus.code.languages import LANGUAGES, check_languages, language_of, may_be
from megagpt.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "text", "language"),
    [
        ("a/b.py", "x = 1", "python"),
        ("A.PY", "x = 1", "python"),
        ("stub.pyi", "x: int", "python"),
        ("a.cc", "int x;", "c++"),
        ("a.h", "int f(void);", "c"),
        ("a.h", "namespace a {\nint f();\n}", "c++"),
        ("a.h", "@interface A : B\n@end", "objective-c"),
        ("a.m", "#import <A.h>", "objective-c"),
        ("a.m", "function y = f(x)\n", "matlab"),
        ("a.m", "(* Mathematica *)", None),
        ("run", "#!/usr/bin/env python3\nx = 1", "python"),
        ("run", "#! /usr/bin/python2.7 -u\nx = 1", "python"),
        ("run", "#!/usr/bin/env -S FOO=1 node\n", "javascript"),
        ("run", "#!/bin/sh\n", "shell"),
        ("run", "#!/usr/bin/unheard-of\n", None),
        ("README", "a text", None),
        ("Makefile", "all:\n", "makefile"),
        ("docker/Dockerfile.gpu", "FROM a", "dockerfile"),
        ("a.ts", "let a: number", "typescript"),
        ("a.ts", '<?xml version="1.0"?><TS>', None),
        ("saved.py", "<!DOCTYPE html><html>", None),
        ("page.html", "<!DOCTYPE html><html>", "html"),
        ("a.pl", "use strict;\n", "perl"),
        ("a.pl", "parent(X, Y) :- child(Y, X).\n", None),
        ("a.json", "{}", None),
        (".gitignore", "*.pyc", None),
    ],
)
def test_language(name, text, language):
    assert language_of(name, text) == language
    assert language is None or language in may_be(name)


def test_a_name_decides_without_reading_what_it_cannot_be():
    assert may_be("a.json") == frozenset() and may_be("a.rs") == {"rust"} and may_be("tool") == set(LANGUAGES)


def test_unknown_languages_are_refused_with_the_nearest():
    assert check_languages(["Python", "C++"]) == ("python", "c++")
    with pytest.raises(ConfigError, match="'pyhton' is not known: did you mean python"):
        check_languages(["python", "pyhton"])


@pytest.mark.parametrize("text", ["\n" * 50_000, " " * 50_000, "#!" + " " * 50_000, "a(" * 25_000])
def test_hostile_text_takes_no_more_than_its_share_of_time(text):
    def languages(text: str) -> list[str | None]:
        return [language_of(name, text) for name in ("a.h", "a.m", "a.pl", "run")]

    ordinary = Path(__file__).read_text()
    ordinary *= 50_000 // len(ordinary)
    assert cpu_seconds(languages, text) < 100 * cpu_seconds(languages, ordinary)
