"""Make edits from documents."""

import random
from collections.abc import Iterable, Iterator, Sequence

from megagpt.data.edits.bugs import broken_functions, fix_bug
from megagpt.data.edits.code import CODE_KINDS, functions_in, prose_of
from megagpt.data.edits.edit import Edit, NotApplicableError
from megagpt.data.edits.text import TEXT_KINDS, passages
from megagpt.data.packed import Split, split_of
from megagpt.errors import ConfigError, DataError

_MAKERS = {**TEXT_KINDS, **CODE_KINDS, "fix_bug": fix_bug}

KINDS: tuple[str, ...] = tuple(_MAKERS)
"""All kinds of edits."""

PROPORTIONS = (0.95, 0.05, 0.0)
"""Shares of texts in train, validation and test."""

ATTEMPTS = 200
"""Number of repeated edits of a kind in a row after which the search for a new one fails."""


def make_edits(
    documents: Iterable[str],
    count: int,
    *,
    kinds: Sequence[str] = KINDS,
    max_chars: int = 400,
    seed: int = 0,
    split: Split | None = None,
) -> Iterator[Edit]:
    """`count` different edits of texts of at most `max_chars` characters, with equal shares of all kinds.

    Prose comes from paragraphs, or from docstrings of Python source; code comes from functions. The same arguments give
    the same edits.
    split: use only texts of this split (PROPORTIONS); a hash of the text decides, so splits have no text in common

    Raises ConfigError for an unknown kind, DataError when there is too little text.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ConfigError(f"kinds {', '.join(unknown) or '(none)'} of edits: they are {', '.join(KINDS)}")
    rng = random.Random(seed)
    pools, seen = _pools(documents, kinds, max_chars, split), set()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        edit = _draw(kind, pools[kind], max_chars, rng, seen)
        seen.add((edit.instruction, edit.input))
        yield edit


def _pools(documents: Iterable[str], kinds: Sequence[str], max_chars: int, split: Split | None) -> dict[str, list]:
    """The distinct texts for each kind; for fix_bug, the broken functions."""
    prose: dict[str, None] = {}
    code: dict[str, None] = {}
    wants_code, wants_prose = set(kinds) & set(CODE_KINDS), set(kinds) & set(TEXT_KINDS)
    for document in documents:
        if wants_code:
            code.update(dict.fromkeys(functions_in(document, max_chars)))
        if wants_prose:
            prose.update(dict.fromkeys(passages(prose_of(document), max_chars)))
    texts = {"prose": list(prose), "code": list(code)}
    if split is not None:
        texts = {
            name: [text for text in found if split_of(text, PROPORTIONS) == split] for name, found in texts.items()
        }
    pools: dict[str, list] = {kind: list(texts["prose" if kind in TEXT_KINDS else "code"]) for kind in kinds}
    if "fix_bug" in pools:
        broken = [item for item in broken_functions() if len(item.right) <= max_chars]
        pools["fix_bug"] = [item for item in broken if split is None or split_of(item.wrong, PROPORTIONS) == split]
    return pools


def _draw(kind: str, pool: list, max_chars: int, rng: random.Random, seen: set[tuple[str, str]]) -> Edit:
    """An edit that is not in `seen`. Texts to which the kind does not apply are removed from the pool."""
    for _ in range(ATTEMPTS):
        edit = _apply(kind, pool, rng)
        if edit is None:
            break
        if (
            edit.input != edit.output
            and len(edit.output) <= 2 * max_chars
            and (edit.instruction, edit.input) not in seen
        ):
            return edit
    raise DataError(
        f"no further edit of kind {kind}, with {len(pool)} texts of at most {max_chars} characters that it applies to: "
        "give more text, allow longer ones, ask for fewer edits or leave the kind out"
    )


def _apply(kind: str, pool: list, rng: random.Random) -> Edit | None:
    """An edit of a random text of the pool; None when the pool is empty."""
    function = _MAKERS[kind]
    while pool:
        place = rng.randrange(len(pool))
        try:
            return function(pool[place], rng)
        except NotApplicableError:
            pool[place] = pool[-1]
            pool.pop()
    return None
