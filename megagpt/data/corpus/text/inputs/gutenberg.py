"""Remove Project Gutenberg's frame around a book: the header, notes about the production of the file, the licence."""

import re

_START = re.compile(
    r"^\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG.*?\*{3}[^\n]*\n|^\*END[* ]THE SMALL PRINT!.*?\*END\*?[^\n]*\n",
    re.M | re.S,
)
_END = re.compile(
    r"^ *(?:\*{3} ?END OF TH(?:E|IS) PROJECT GUTENBERG|End of (?:[Tt]h(?:e|is) )?Project Gutenberg)", re.M
)
_PRODUCED = re.compile(r"\s*(?:Produced|E-text prepared|This e-?text was (?:produced|prepared)) by\b.*?\n\s*\n", re.S)
_FIELD = re.compile(r"^(Title|Author|Language|Release Date): *(\S.*)$", re.M)
_NAMES = {"Title": "title", "Author": "author", "Language": "language", "Release Date": "date"}
_WINDOW = 1 << 15
"""Number of first characters in which the header ends. The end mark may be anywhere."""


def cut_gutenberg(text: str) -> tuple[str, dict[str, str]]:
    """(the book in `text`, metadata of the header); (`text`, {}) without Project Gutenberg's marks."""
    start = _START.search(text[:_WINDOW])
    if not start:
        return text, {}
    about = {_NAMES[field]: value.strip() for field, value in reversed(_FIELD.findall(text[: start.start()]))}
    end = _END.search(text, start.end())
    book = text[start.end() : end.start() if end else len(text)]
    if produced := _PRODUCED.match(book[:2000]):
        book = book[produced.end() :]
    return book.strip("\n") + "\n", about
