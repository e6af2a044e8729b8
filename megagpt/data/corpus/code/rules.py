"""The rules that drop a source file, one small function each, and the published thresholds.

Each rule takes a property of the file and returns the reason to drop the file, or None.
"""

import codecs
import re
import string
from dataclasses import dataclass

MAX_BYTES = 1_000_000
"""Largest size of a file; Codex (arXiv 2107.03374) takes files under 1 MB."""
MAX_MEAN_LINE = 100.0
"""Largest mean line length, in characters; Codex's value."""
MAX_LINE = 1000
"""Largest length of a line, in characters; Codex's value."""
MIN_ALPHANUMERIC = 0.25
"""Smallest share of letters and digits. Codex drops "a small percentage" without a figure; this is CodeParrot's and
The Stack's."""
GENERATED_LINES = 5
"""Number of first lines that are searched for signs of generated code. Codex drops likely generated files but does not
publish its method; this is CodeParrot's value."""
NGRAM = 13
"""Length in words of an overlap with evaluation data; GPT-3 (arXiv 2005.14165) uses 13-grams."""

_ALPHANUMERIC = (string.ascii_letters + string.digits).encode()
_GENERATED = re.compile(
    r"\bauto-?\s?generated|\bautomatically (?:generated|created|produced)|\bgenerated automatically|@generated\b"
    r"|\b(?:do not|don'?t) (?:edit|modify)\b|\b(?:file|code) (?:is |was |has been )?generated\b|\bmachine[- ]generated",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Limits:
    """Thresholds of the rules; see the constants of the same names."""

    max_bytes: int = MAX_BYTES
    max_mean_line: float = MAX_MEAN_LINE
    max_line: int = MAX_LINE
    min_alphanumeric: float = MIN_ALPHANUMERIC
    generated_lines: int = GENERATED_LINES


def too_large(size: int, limits: Limits) -> str | None:
    """Too many bytes: tables and bundles rather than hand-written code."""
    return f"{size:,} bytes" if size > limits.max_bytes else None


def decode(content: bytes) -> tuple[str, str | None]:
    """(text of a file without byte order mark, None), or ("", the reason why it is not UTF-8 text)."""
    if b"\0" in content:
        return "", f"NUL at byte {content.index(0)}"
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode(), None
    except UnicodeDecodeError as error:
        return "", f"at byte {error.start}"


def empty(text: str, _: Limits) -> str | None:
    """Nothing but white space."""
    return None if text.strip() else "nothing but white space"


def generated(text: str, limits: Limits) -> str | None:
    """The first lines say that a program wrote the file."""
    head = "\n".join(text[:10_000].split("\n", limits.generated_lines)[: limits.generated_lines])
    found = _GENERATED.search(head)
    return f'says "{found[0]}"' if found else None


def mean_line(text: str, limits: Limits) -> str | None:
    """Long lines on average: data or minified code."""
    lines = text.splitlines()
    mean = sum(map(len, lines)) / len(lines)
    return f"{mean:.1f} characters" if mean > limits.max_mean_line else None


def longest_line(text: str, limits: Limits) -> str | None:
    """One very long line: embedded data."""
    longest = max(map(len, text.splitlines()))
    return f"{longest:,} characters" if longest > limits.max_line else None


def alphanumeric(text: str, limits: Limits) -> str | None:
    """Hardly any letters and digits: tables of symbols, drawings, escapes."""
    if text.isascii():  # this way is many times faster
        count = len(text) - len(text.encode().translate(None, _ALPHANUMERIC))
    else:
        count = sum(map(str.isalnum, text))
    share = count / len(text)
    return f"{share:.1%} alphanumeric" if share < limits.min_alphanumeric else None


ABOUT_TEXT = {
    "empty": empty,
    "generated": generated,
    "mean line": mean_line,
    "longest line": longest_line,
    "alphanumeric share": alphanumeric,
}
"""Rules about the text, in order; the first that gives a reason drops the file."""
