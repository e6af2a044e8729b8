"""Text of unknown origin on a page, with what is invisible in it made visible."""

import re
import unicodedata
from html import escape

LONGEST = 20_000
"""Characters of a text that the page shows; of a longer one it shows the two ends."""

JOINERS = "\u200c\u200d"
"""Invisible, but part of how Persian, Hindi and emoji are written."""

DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls that HTML has no place for, marks that turn other text around, halves of surrogate pairs."""

SPACES = re.compile(r"^ +| +$|  +", re.MULTILINE)
"""Spaces that could be overlooked."""


def defused(text: str) -> str:
    """The same text with a replacement character for each one that has no place on a page."""
    return DANGEROUS.sub("\N{REPLACEMENT CHARACTER}", text)


def marked(text: str) -> str:
    """HTML of a text for a `pre` or `code`: escaped, with signs at line feeds, tabs and easily overlooked spaces.

    The signs are not part of what is copied from the page. Other invisible characters have their numbers. Of texts
    above LONGEST the middle is left out, and says so.
    """
    if len(text) > LONGEST:
        half, left_out = LONGEST // 2, len(text) - LONGEST
        return f'{_marked(text[:half])}<b class="cut">{left_out:,} characters left out</b>{_marked(text[-half:])}'
    return _marked(text)


def _marked(text: str) -> str:
    parts, position = [], 0
    for match in SPACES.finditer(text):
        parts += [_characters(text[position : match.start()]), '<i data-sign="·"> </i>' * len(match[0])]
        position = match.end()
    return "".join([*parts, _characters(text[position:])])


def _characters(text: str) -> str:
    return "".join(map(_character, text)) if not text.isprintable() or not text.isascii() else escape(text)


def _character(character: str) -> str:
    if character == "\n":
        return '<i data-sign="↵"></i>\n'
    if character == "\t":
        return '<i data-sign="→">\t</i>'
    category = unicodedata.category(character)
    invisible = category in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn") or (category == "Zs" and character != " ")
    if invisible and character not in JOINERS:
        return f'<i data-sign="U+{ord(character):04X}"></i>'
    return escape(character)
