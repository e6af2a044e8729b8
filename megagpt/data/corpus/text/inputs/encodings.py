"""Decode bytes whose encoding is stated, wrongly stated, or not stated."""

import codecs
import re
from types import ModuleType

from megagpt.errors import ConfigError

REPLACED_SHARE = 0.01
"""Largest share of characters that may be undecodable; with more, the text is not in that encoding."""

DETECTED_BYTES = 1 << 17
"""Number of first bytes from which resiliparse detects the encoding."""
SECOND_OPINION_BYTES = 1 << 14
"""Number of first bytes for charset-normalizer, which is slow and only used where resiliparse fails."""

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_MARKS = {"utf-16-le": b"\0", "utf-16-be": b"\0", "iso2022_jp": b"\x1b"}
"""Encodings whose bytes may all be ASCII, and a byte that nearly every text in them has."""
_META = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([\w:.-]{1,40})""", re.I)
_META_BYTES = 4096


class Undecodable(Exception):
    """No encoding fits the bytes. The message names the encodings that were tried."""


def decode(data: bytes, label: str | None = None, markup: bool = False) -> tuple[str, str]:
    """The text of `data`, and Python's name of its encoding.

    Tried in this order: a byte order mark; UTF-8, because long text in another encoding is hardly ever valid UTF-8,
    while pages often state a wrong encoding; `label` (a name of the WHATWG Encoding Standard); a statement in the text
    if it is `markup`; and detection by the frequencies of bytes. Single undecodable bytes become U+FFFD.

    Raises Undecodable when none fits, ConfigError without resiliparse.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return _mostly(data[len(mark) :], name)
    stated = [label] if label else []
    if markup and (found := _META.search(data, 0, _META_BYTES)):
        stated.append(found[1].decode("ascii"))
    names = [name for name in map(_python_name, stated) if name and _MARKS.get(name, b"") in data]
    if names and names[0] in _MARKS:
        return _mostly(data, names[0])
    if (text := _utf8(data)) is not None:
        return text, "utf-8"
    for name in [*names, _detected(data)]:
        try:
            return data.decode(name), name
        except UnicodeDecodeError:
            last = name
    return _mostly(data, last)


def _utf8(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.end == len(data):
            return data[: error.start].decode()  # the page is cut inside a character
    text = data.decode(errors="replace")
    foreign = len(text) - len(text.encode("ascii", "ignore"))
    # Still UTF-8 if few letters are damaged, for example by pasted text in another encoding.
    return text if 10 * text.count("\ufffd") < foreign else None


def _mostly(data: bytes, name: str) -> tuple[str, str]:
    text = data.decode(name, errors="replace")
    if text.count("\ufffd") > 1 + REPLACED_SHARE * len(text):
        raise Undecodable(f"neither UTF-8 nor {name}" if name != "utf-8" else "not UTF-8")
    return text, name


def _python_name(label: str) -> str | None:
    name = _resiliparse().map_encoding_to_html5(label.strip().strip("\"'"), False)
    try:
        return name and codecs.lookup(name).name
    except LookupError:
        return None


def _detected(data: bytes) -> str:
    name = _resiliparse().detect_encoding(data, DETECTED_BYTES)
    if name == "utf-8":  # UTF-8 was ruled out; resiliparse returns it for Korean and unknown encodings
        from charset_normalizer import from_bytes

        best = from_bytes(data[:SECOND_OPINION_BYTES]).best()
        name = best.encoding if best else name
    return name


def _resiliparse() -> ModuleType:
    try:
        from resiliparse.parse import encoding
    except ImportError:
        raise ConfigError('telling encodings needs resiliparse: pip install "megagpt[corpora]"') from None
    return encoding
