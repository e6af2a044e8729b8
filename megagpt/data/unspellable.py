"""Special tokens that no text can spell.

Every process renames the special tokens of a tokenizer.json at random. A text that spells "<|endoftext|>" or "</s>" is
then ordinary text, also for unigram models, which have such tokens among their pieces. Code that means a special token,
for example between the turns of a conversation, writes its random name.
"""

import json
import re
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from megagpt.data.fim_names import FIM_NAMES
from megagpt.errors import DataError

_MARK = f"\ue000{secrets.token_hex(8)}\ue000"
"""Prefix of the random names in this process; no text can contain it except by chance."""
_FILLERS = [chr(code) for code in range(0xE001, 0xE100)]
"""Private characters; one that a text does not have can be inserted into it."""


class Unspellable:
    """A tokenizer.json with random names of its special tokens."""

    def __init__(self, spec: dict[str, Any], name: str) -> None:
        """Rename the special tokens in `spec`, the object of a tokenizer.json, in place.

        Tokens are special if the file says so, or if they belong to fill-in-the-middle: some files call these ordinary.
        Raises DataError if merges make a special token; KeyError, TypeError or ValueError if `spec` is malformed.
        """
        model, vocab = spec["model"], spec["model"]["vocab"]
        special = [token for token in spec["added_tokens"] if token["special"] or token["content"] in FIM_NAMES]
        self.ids: dict[str, int] = {token["content"]: token["id"] for token in special}
        if "" in self.ids:
            raise DataError(f"{name} has a special token without a name: remove it from added_tokens")
        self._names = {token["id"]: token["content"] for token in spec["added_tokens"]}
        pieces = vocab.items() if isinstance(vocab, dict) else ((piece, n) for n, (piece, _) in enumerate(vocab))
        self._names = {index: piece for piece, index in pieces} | self._names
        made = {"".join(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in model.get("merges", ())}
        if spelled := sorted(made & self.ids.keys()):
            raise DataError(f"{name} merges characters into its special token {spelled[0]}, so that any text could")
        drawn = self._drawn = {content: f"{_MARK}{index}\ue000" for content, index in self.ids.items()}
        if isinstance(vocab, dict):
            model["vocab"] = {drawn.get(piece, piece): index for piece, index in vocab.items()}
        else:
            model["vocab"] = [[drawn.get(piece, piece), score] for piece, score in vocab]
        if model.get("unk_token") in drawn:
            model["unk_token"] = drawn[model["unk_token"]]
        for token in special:
            token |= {"content": drawn[token["content"]], "special": True}
        self.spec = json.dumps(spec, ensure_ascii=False)
        """The changed tokenizer.json."""
        self._pattern = re.compile(_any_of(self.ids))

    def name_of(self, token: int) -> str | None:
        """The name of a token in the file; None for an unknown id."""
        return self._names.get(token)

    def fillers(self, texts: Iterable[str]) -> tuple[str, str]:
        """Two characters that occur in none of the texts. Raises DataError if they use all private characters."""
        used = set().union(*texts)
        free = [character for character in _FILLERS if character not in used]
        if len(free) < 2:
            raise DataError("a conversation has all private characters from U+E001 to U+E0FF, and cannot be written")
        return free[0], free[1]

    def hide(self, text: str, filler: str) -> str:
        """The text with a filler after every character of each special token's name in it.

        One filler per name is not enough: the rest of the name may contain another name.
        """
        return self._pattern.sub(lambda found: "".join(f"{character}{filler}" for character in found[0]), text)

    def pattern(self, names: Iterable[str], filler: str) -> re.Pattern[str]:
        """Finds special tokens of these names in a text where `hide` has hidden those that are not meant.

        A character with a filler behind it is one of a name that is not meant.
        """
        return re.compile(f"(?:{_any_of(names)})(?!{filler})")

    def mark(self, text: str, filler: str, places: Sequence[int]) -> tuple[str, list[int]]:
        """The text with random names in place of special tokens and without fillers, for `Tokenizer.encode_marked`.

        places: character positions in `text`, ascending, none inside a special token's name

        Returns the new text, and these positions in it.
        """
        parts: list[str] = []
        new: list[int] = []
        start, length = 0, 0
        waiting = deque(places)
        for found in (*self.pattern(self.ids, filler).finditer(text), None):
            end = found.start() if found else len(text)
            while waiting and waiting[0] <= end:
                place = waiting.popleft()
                new.append(length + place - start - text.count(filler, start, place))
            parts.append(text[start:end].replace(filler, ""))
            parts.append(self._drawn[found[0]] if found else "")
            length += len(parts[-1]) + len(parts[-2])
            start = found.end() if found else end
        return "".join(parts), new


def _any_of(names: Iterable[str]) -> str:
    """A regular expression for one of the names, the longest first."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
