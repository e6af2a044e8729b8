"""How tokens and their log-probabilities are written in responses."""

import codecs
from collections.abc import Iterable
from typing import Any

from megagpt.data.tokenizer import Tokenizer
from megagpt.serve.interface import NewToken, PromptToken

LEAST_LOGPROB = -9999.0
"""What stands for everything less likely: JSON has no infinity."""

Spelled = NewToken | PromptToken


class Spelling:
    """Texts of single tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {index: name for name, index in tokenizer.special_ids.items()}

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a special token."""
        return self._tokenizer.decode_bytes([token])

    def text(self, token: int) -> str:
        r"""The name of a special token, the text of any other, or "bytes:\xe2\x80" for a part of a character."""
        if token in self._special:
            return self._special[token]
        content = self.bytes_of(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


class Offsets:
    """Characters before each token of one text, counted as its tokens come.

    Tokens that are parts of one character stand where it does; special tokens are no text.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def add(self, content: bytes) -> int:
        """The place of the next token, which stands for `content`."""
        place = self._characters
        self._characters += len(self._decoder.decode(content))
        return place


class CompletionLogprobs:
    """`logprobs` of one choice of a completion: four lists with an entry for every token."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling, self._offsets = spelling, Offsets()

    @staticmethod
    def empty() -> dict[str, list[Any]]:
        """The lists of no tokens."""
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def lists(self, tokens: Iterable[Spelled]) -> dict[str, list[Any]]:
        """The entries of the tokens that come next."""
        found = self.empty()
        for one in tokens:
            found["tokens"].append(self._spelling.text(one.token))
            first = one.logprob is None
            found["token_logprobs"].append(None if first else number(one.logprob))
            found["top_logprobs"].append(None if first else self._top(one))
            found["text_offset"].append(self._offsets.add(self._spelling.bytes_of(one.token)))
        return found

    def _top(self, one: Spelled) -> dict[str, float]:
        """The alternatives by their texts, and the token itself; of two that read alike, the likelier."""
        itself = ((one.token, one.logprob),) if one.top_logprobs else ()
        top: dict[str, float] = {}
        for token, logprob in (*one.top_logprobs, *itself):
            text = self._spelling.text(token)
            top[text] = max(number(logprob), top.get(text, LEAST_LOGPROB))
        return top


def chat_logprob(spelling: Spelling, one: NewToken) -> dict[str, Any]:
    """An entry of `logprobs.content` of a message."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": spelling.text(token),
            "logprob": number(logprob),
            "bytes": list(spelling.bytes_of(token)),
        }

    return entry(one.token, one.logprob) | {"top_logprobs": [entry(*other) for other in one.top_logprobs]}


def number(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return max(logprob, LEAST_LOGPROB)
