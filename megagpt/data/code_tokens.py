"""Tokens that a tokenizer needs for code: runs of spaces, and the sentinels of fill-in-the-middle."""

import json

from tokenizers.models import BPE

from megagpt.data.fim_names import OWN
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError

FIM_TOKENS = FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, FIM_PAD = OWN
"""Special tokens of fill-in-the-middle, with Megatron-LM's names."""

LONGEST_RUN = 32
"""Number of spaces in the longest run that gets its own token."""

_SPACE = "Ġ"
"""How byte-level BPE spells a space."""


def grow_for_code(base: Tokenizer, longest_run: int = LONGEST_RUN) -> Tokenizer:
    """`base` with a token for every run of 2..longest_run spaces, as in Codex (arXiv 2107.03374), and FIM_TOKENS.

    Old tokens keep their ids, and new tokens get the ids after them; tokens that `base` has already are not added
    again. The merges of spaces have a lower rank than all others, so text without runs of spaces is encoded as before,
    and a word still takes the space before it. Raises ConfigError for a longest_run below 1, and DataError when `base`
    is not byte-level BPE.
    """
    if longest_run < 1:
        raise ConfigError(f"the longest run of spaces is {longest_run}; it must be at least 1 (no tokens for runs)")
    spec = json.loads(base.to_json())
    if not base.is_byte_level or spec["model"].get("ignore_merges"):
        raise DataError(
            "runs of spaces can be added to byte-level BPE as `megagpt data tokenizer` makes it, and this tokenizer is"
            " of another kind: train with it as it is"
        )
    vocab, merges, added = spec["model"]["vocab"], spec["model"]["merges"], spec["added_tokens"]
    for token in added:  # the library numbers added tokens after the model's, unless the model knows them too
        vocab.setdefault(token["content"], token["id"])
    runs = [pair for pair in map(tuple, merges) if set("".join(pair)) == {_SPACE}]
    known = len(runs)
    for length in range(2, longest_run + 1):
        while len(parts := _merge_run(length, runs)) > 1:
            runs.append((parts[0], parts[1]))
    for pair in runs[known:]:
        merges.append(list(pair))
        vocab.setdefault("".join(pair), len(vocab))
    return base.replaced(spec).with_special_tokens(FIM_TOKENS)


def _merge_run(length: int, runs: list[tuple[str, str]]) -> list[str]:
    """The tokens of `length` spaces. `runs` are all merges that consist of spaces, so no others can apply."""
    tokens = dict.fromkeys([_SPACE, *(part for pair in runs for part in (*pair, "".join(pair)))])
    model = BPE({token: index for index, token in enumerate(tokens)}, runs)
    return [token.value for token in model.tokenize(_SPACE * length)]
