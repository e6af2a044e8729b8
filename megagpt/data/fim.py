"""Fill-in-the-middle (Bavarian et al., arXiv 2207.14255): documents rearranged so that a model learns to insert.

A document is cut at two random characters, or around one line, into prefix, middle and suffix. Each part is encoded
alone, and the parts are put in one of two orders, PSM and SPM, with the middle at the end:

    PSM   <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle <|endoftext|>
    SPM   <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle <|endoftext|>

End-of-text is always added: it tells that the middle has reached the suffix. All parts are trained on.
"""

import re

import numpy as np

from megagpt.data.code_tokens import FIM_TOKENS
from megagpt.data.fim_names import FIM_STYLES, OWN, FimTokens
from megagpt.data.packed import hashes
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError

# Numbers of random streams. Streams 0 and 1 order documents and windows, 3 draws the documents to evaluate.
_STREAM, _PIECES = 2, 4

UNITS: dict[str, re.Pattern[str]] = {
    "line": re.compile(r"(?<=\S)\n[^\n]*\S(?=\n)"),
    "word": re.compile(r"(?<=\S) [A-Za-z]+(?![A-Za-z])"),
}
"""Units that can be a middle: a line with the newline before it, or a word with the space before it."""


def fim_style(tokenizer: Tokenizer) -> FimTokens | None:
    """The tokenizer's names of these tokens; None if it has no complete set."""
    special = tokenizer.special_ids
    return next((style for style in FIM_STYLES if special.keys() >= set(style[: 4 if style is OWN else 3])), None)


def fim_ids(tokenizer: Tokenizer) -> tuple[int, int, int, int]:
    """Ids of prefix, middle, suffix and padding. Raises DataError when the tokenizer lacks one.

    Published models without a padding token for fill-in-the-middle use their pad token, or end-of-text.
    """
    style = fim_style(tokenizer)
    if style is None:
        missing = [name for name in FIM_TOKENS if name not in tokenizer.special_ids]
        raise DataError(
            f"the tokenizer has no special token {', '.join(missing)} for filling in the middle: add what is missing "
            "with `megagpt data tokenizer --extend OLD --output NEW`, and train the model on fill-in-the-middle with it"
        )
    special, padding = tokenizer.special_ids, tokenizer.companions.special_tokens.get("pad_token")
    pad = next(special[name] for name in (style.pad, padding, tokenizer.end_of_text) if name in special)
    return special[style.prefix], special[style.middle], special[style.suffix], pad


def fim_prompt(tokenizer: Tokenizer, prefix: str, suffix: str, spm: bool = True) -> list[int]:
    """Token ids of a prompt. The model continues it with the text between `prefix` and `suffix`, then end-of-text.

    SPM order fills in slightly better than PSM. It also has the prefix at the end, so a longer prefix only adds tokens.
    Raises DataError when the tokenizer lacks the tokens for it.
    """
    first, middle, second, _ = fim_ids(tokenizer)
    before, after = tokenizer.encode_part(prefix), tokenizer.encode_part(suffix)
    if spm:
        return [*tokenizer.start_ids, first, second, *after, middle, *before]
    return [*tokenizer.start_ids, first, *before, second, *after, middle]


def units_within(text: str, unit: str = "line") -> list[tuple[int, int]]:
    """(first, last + 1) characters of the lines or words of `text` that can be a middle, by the patterns of UNITS.

    The first and the last line are left out, since they may be parts of lines, and so are blank lines. A line, and the
    line before it, must not end in white space. With these cuts, all three parts have the same tokens as in the whole
    text, because a token with a newline holds only white space, and no token begins inside a word of letters.
    """
    return [match.span() for match in UNITS[unit].finditer(text)]


class FillInTheMiddle:
    """Rearranges the documents inside training samples (context-level): a pure function of (seed, sample, tokens)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        rate: float = 0.5,
        spm_rate: float = 0.5,
        seed: int = 0,
        unit_rate: float = 0.0,
        unit: str = "line",
        piece_tokens: int = 0,
    ) -> None:
        """Shares are in 0..1.

        rate: share of the documents that are rearranged
        spm_rate: share of the rearranged documents in SPM order
        unit_rate: share of the rearranged documents whose middle is one `unit` (a key of UNITS)
        piece_tokens: if above 0, documents are first cut into pieces of piece_tokens / 4 to piece_tokens tokens, and
            each piece counts as a document. Without it, a document longer than a sample has its end-of-text always at
            the end of the sample, and a model may learn to end there by position alone.

        Raises ConfigError for a share outside 0..1, DataError when the tokenizer lacks the tokens.
        """
        for name, share in (("rate", rate), ("spm_rate", spm_rate), ("unit_rate", unit_rate)):
            if not 0 <= share <= 1:
                raise ConfigError(f"the {name} of fill-in-the-middle is {share}; it must be in 0..1")
        self.tokenizer, self.rate, self.spm_rate, self.seed = tokenizer, rate, spm_rate, seed
        self.unit_rate, self.unit, self.piece_tokens = unit_rate, unit, piece_tokens
        self._pad = fim_ids(tokenizer)[-1]

    def sample(self, tokens: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, int64 [S + 1], and loss mask, float32 [S], of sample `index` of the run, rearranged.

        tokens: int64 [S + 1], documents that end with end-of-text; the first and the last may be parts of documents.
        Each document is rearranged or not by itself. If the sample gets too long, its last text is shortened before it
        is rearranged; if it gets too short, it is padded with <fim_pad>, mask 0.
        """
        ends = np.flatnonzero(tokens == self.tokenizer.end_of_text_id) + 1
        edges = np.union1d(ends, self._edges(len(tokens), index)) if self.piece_tokens else ends
        documents = [document for document in np.split(tokens, edges) if len(document)]
        numbers = hashes(4 * len(documents), self.seed, index, _STREAM).reshape(-1, 4)
        result, filled = np.full(len(tokens), self._pad, np.int64), 0
        for document, uniforms in zip(documents, (numbers >> np.uint64(11)) / 2.0**53, strict=True):
            room = len(result) - filled
            new = self._document(document, uniforms, room)[:room]
            result[filled : filled + len(new)] = new
            filled += len(new)
        return result, (np.arange(1, len(tokens)) < filled).astype(np.float32)

    def rearrange(self, text: str, first: int, last: int, spm: bool) -> list[int]:
        """Tokens of `text` with its characters first..last-1 moved to the end, followed by end-of-text."""
        prompt = fim_prompt(self.tokenizer, text[:first], text[last:], spm)
        return [*prompt, *self.tokenizer.encode_part(text[first:last]), self.tokenizer.end_of_text_id]

    def _edges(self, count: int, index: int) -> np.ndarray:
        """int64 [n]: positions in 1..count - 1 at which sample `index` of `count` tokens is cut into pieces."""
        least = max(1, self.piece_tokens // 4)
        lengths = least + hashes(count // least, self.seed, index, _PIECES) % np.uint64(self.piece_tokens - least + 1)
        edges = np.cumsum(lengths.astype(np.int64))
        return edges[edges < count]

    def _document(self, document: np.ndarray, uniforms: np.ndarray, room: int) -> np.ndarray | list[int]:
        """One document, rearranged into at most `room` tokens with probability `rate`, otherwise unchanged.

        uniforms: float64 [4] in [0, 1), which decide whether it is rearranged, the order, and the two cuts.
        """
        chance, order, *cuts = uniforms.tolist()
        if chance >= self.rate:
            return document
        body = document[: len(document) - int(document[-1] == self.tokenizer.end_of_text_id)]
        start = self.tokenizer.start_ids
        body = body[len(start) :] if body[: len(start)].tolist() == start else body
        if not self.tokenizer.token_bytes[body].all():
            return document  # a special token inside has no text, so it would be lost
        cut_unit = chance < self.rate * self.unit_rate
        # A sample may begin or end inside a character; those bytes are dropped, as they are no text.
        while text := self.tokenizer.decode_bytes(body.tolist()).decode(errors="ignore"):
            first, last = self._middle(text, cuts, cut_unit)
            new = self.rearrange(text, first, last, order < self.spm_rate)
            if len(new) <= room:
                return new
            body = body[: room - len(new)]
        return document

    def _middle(self, text: str, cuts: list[float], cut_unit: bool) -> tuple[int, int]:
        """(first, last + 1) character of the middle, from two numbers in [0, 1).

        cut_unit: take a whole unit if the text has one
        """
        if cut_unit and (units := units_within(text, self.unit)):
            return units[int(cuts[0] * len(units))]
        first, last = sorted(int(cut * (len(text) + 1)) for cut in cuts)
        return first, last
