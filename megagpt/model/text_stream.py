"""Decodes text that arrives token by token: yields whole characters, and ends before a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of one sequence's tokens into text that is final."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = [text.encode() for text in stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""
        self.stopped = False
        """Whether a stop string has appeared; the text ends before it."""

    def add(self, new: bytes) -> str:
        """The text that is final after the bytes `new`; a possible start of a stop string or character is held back."""
        self._held += new
        found = [start for text in self._stop if (start := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return self.finish()
        settled = len(self._held) - self._stop_prefix()
        text = self._decoder.decode(self._held[:settled])
        self._held = self._held[settled:]
        return text

    def finish(self) -> str:
        """The text that was held back; an incomplete character becomes U+FFFD."""
        held, self._held = self._held, b""
        return self._decoder.decode(held, final=True)

    def _stop_prefix(self) -> int:
        """Number of held bytes at the end that may be the start of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-size:]) for text in self._stop):
                return size
        return 0
