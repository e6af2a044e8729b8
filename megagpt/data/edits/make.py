"""Draws edits from documents."""

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
"""Edits of a kind in a row that there are already, after which it is given up."""


def make_edits(
    documents: Iterable[str],
    count: int,
    *,
    kinds: Sequence[str] = KINDS,
    max_chars: int = 400,
    seed: int = 0,
    split: Split | None = None,
) -> Iterator[Edit]:
    """`count` edits, the kinds in equal shares, of texts of at most `max_chars` characters; no two are the same.

    Prose is taken from between blank lines, of Python source from docstrings; code from functions. The same arguments
    give the same edits. `split`: only of texts that a hash puts into train, or into validation (one in twenty), so that
    the two have none in common. Raises ConfigError for an unknown kind, DataError when there is too little text.
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
    """The texts that each kind may apply to, none twice; for fix_bug, the broken functions."""
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
    """An edit that has not been `seen`. Texts that the kind does not apply to leave the pool."""
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
    """An edit of a text of the pool; None when there is none left."""
    function = _MAKERS[kind]
    while pool:
        place = rng.randrange(len(pool))
        try:
            return function(pool[place], rng)
        except NotApplicableError:
            pool[place] = pool[-1]
            pool.pop()
    return None
