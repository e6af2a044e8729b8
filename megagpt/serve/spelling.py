"""Writes tokens and their log-probabilities in the formats of the API."""

import codecs
from collections.abc import Iterable
from typing import Any

from megagpt.data.tokenizer import Tokenizer
from megagpt.serve.interface import NewToken, PromptToken

LEAST_LOGPROB = -9999.0
"""Lower log-probabilities are replaced by this number, because JSON has no infinity."""

Spelled = NewToken | PromptToken


class Spelling:
    """Texts of single tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {index: name for name, index in tokenizer.special_ids.items()}

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; empty for a special token."""
        return self._tokenizer.decode_bytes([token])

    def text(self, token: int) -> str:
        r"""The name of a special token, or the text of another; "bytes:\xe2\x80" for a part of a character."""
        if token in self._special:
            return self._special[token]
        content = self.bytes_of(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


class Offsets:
    """Counts the characters before each token of a text, token by token.

    Tokens that are parts of one character have the character's offset; special tokens have no characters.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def add(self, content: bytes) -> int:
        """The offset, in characters, of the next token, whose bytes are `content`."""
        place = self._characters
        self._characters += len(self._decoder.decode(content))
        return place


class CompletionLogprobs:
    """The field `logprobs` of one choice of a completion: four lists with one entry per token."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling, self._offsets = spelling, Offsets()

    @staticmethod
    def empty() -> dict[str, list[Any]]:
        """The four lists, empty."""
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def lists(self, tokens: Iterable[Spelled]) -> dict[str, list[Any]]:
        """The four lists for the next tokens of the choice."""
        found = self.empty()
        for one in tokens:
            found["tokens"].append(self._spelling.text(one.token))
            first = one.logprob is None
            found["token_logprobs"].append(None if first else number(one.logprob))
            found["top_logprobs"].append(None if first else self._top(one))
            found["text_offset"].append(self._offsets.add(self._spelling.bytes_of(one.token)))
        return found

    def _top(self, one: Spelled) -> dict[str, float]:
        """{text: log-probability} of the alternatives and the token itself; the larger for tokens with equal texts."""
        itself = ((one.token, one.logprob),) if one.top_logprobs else ()
        top: dict[str, float] = {}
        for token, logprob in (*one.top_logprobs, *itself):
            text = self._spelling.text(token)
            top[text] = max(number(logprob), top.get(text, LEAST_LOGPROB))
        return top


def chat_logprob(spelling: Spelling, one: NewToken) -> dict[str, Any]:
    """An entry of a message's `logprobs.content`."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": spelling.text(token),
            "logprob": number(logprob),
            "bytes": list(spelling.bytes_of(token)),
        }

    return entry(one.token, one.logprob) | {"top_logprobs": [entry(*other) for other in one.top_logprobs]}


def number(logprob: float) -> float:
    """A finite log-probability, for JSON."""
    return max(logprob, LEAST_LOGPROB)
