"""Shows untrusted text on a page safely, with its invisible characters made visible."""

import re
import unicodedata
from html import escape

LONGEST = 20_000
"""Largest number of characters of a text that the page shows; of a longer text it shows both ends."""

JOINERS = "\u200c\u200d"
"""Invisible joiners, which Persian, Hindi and emoji need."""

DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters that HTML does not allow, marks that change the text direction, and single surrogates."""

SPACES = re.compile(r"^ +| +$|  +", re.MULTILINE)
"""Spaces that are easily overlooked: at line ends, and several in a row."""


def defused(text: str) -> str:
    """The text with a replacement character for each DANGEROUS one."""
    return DANGEROUS.sub("\N{REPLACEMENT CHARACTER}", text)


def marked(text: str) -> str:
    """HTML of a text for `pre` or `code`: escaped, with signs at line feeds, tabs and easily overlooked spaces.

    The signs are not copied with the text. Other invisible characters are shown as code points. A text longer than
    LONGEST has a note in place of its middle.
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
