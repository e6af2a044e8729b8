"""Draws edits from documents."""

import random
from collections.abc import Iterable, Iterator, Sequence

from megagpt.data.edits.bugs import fix_bug
from megagpt.data.edits.code import CODE_KINDS, functions_in, prose_of
from megagpt.data.edits.edit import Edit, NotApplicableError
from megagpt.data.edits.text import TEXT_KINDS, passages
from megagpt.errors import ConfigError, DataError

KINDS: tuple[str, ...] = (*TEXT_KINDS, *CODE_KINDS, "fix_bug")
"""All kinds of edits."""

ATTEMPTS = 200
"""Texts that are tried in a row for an edit of a kind before it is given up."""


def make_edits(
    documents: Iterable[str], count: int, *, kinds: Sequence[str] = KINDS, max_chars: int = 400, seed: int = 0
) -> Iterator[Edit]:
    """`count` edits, the kinds in equal shares, of texts of at most `max_chars` characters; no two are the same.

    Prose is taken from between blank lines, of Python source from docstrings; code from functions. The same arguments
    give the same edits. Raises ConfigError for an unknown kind, DataError when there is too little text for a kind.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ConfigError(f"kinds {', '.join(unknown) or '(none)'} of edits: they are {', '.join(KINDS)}")
    rng = random.Random(seed)
    prose, code = _sources(documents, kinds, max_chars)
    seen: set[tuple[str, str]] = set()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield _new(kind, prose, code, max_chars, rng, seen)


def _sources(documents: Iterable[str], kinds: Sequence[str], max_chars: int) -> tuple[list[str], list[str]]:
    prose, code = {}, {}
    wants_code, wants_prose = set(kinds) & set(CODE_KINDS), set(kinds) & set(TEXT_KINDS)
    for document in documents:
        functions = functions_in(document, max_chars) if wants_code else []
        code.update(dict.fromkeys(functions))
        if wants_prose:
            prose.update(dict.fromkeys(passages(prose_of(document), max_chars)))
    return list(prose), list(code)


def _new(
    kind: str, prose: list[str], code: list[str], max_chars: int, rng: random.Random, seen: set[tuple[str, str]]
) -> Edit:
    """An edit that has not been `seen`, and now is."""
    for _ in range(ATTEMPTS):
        try:
            edit = _draw(kind, prose, code, max_chars, rng)
        except NotApplicableError:
            continue
        key = edit.instruction, edit.input
        if edit.input != edit.output and len(edit.output) <= 2 * max_chars and key not in seen:
            seen.add(key)
            return edit
    raise DataError(
        f"no new edit of kind {kind} in {ATTEMPTS} attempts on {len(prose)} passages and {len(code)} functions of at "
        f"most {max_chars} characters: give more text, allow longer ones, ask for fewer or leave the kind out"
    )


def _draw(kind: str, prose: list[str], code: list[str], max_chars: int, rng: random.Random) -> Edit:
    if kind == "fix_bug":
        return fix_bug(rng, max_chars)
    sources, function = (prose, TEXT_KINDS[kind]) if kind in TEXT_KINDS else (code, CODE_KINDS[kind])
    if not sources:
        raise NotApplicableError
    return function(sources[rng.randrange(len(sources))], rng)
