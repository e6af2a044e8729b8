"""What Project Gutenberg puts around a book: its header, notes of how the file was made, and its licence."""

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
"""The header is in so many characters at the beginning, the end mark may be anywhere."""


def cut_gutenberg(text: str) -> tuple[str, dict[str, str]]:
    """The book in `text`, and what the header said of it; `text` itself where Project Gutenberg's marks are absent."""
    start = _START.search(text[:_WINDOW])
    if not start:
        return text, {}
    about = {_NAMES[field]: value.strip() for field, value in reversed(_FIELD.findall(text[: start.start()]))}
    end = _END.search(text, start.end())
    book = text[start.end() : end.start() if end else len(text)]
    if produced := _PRODUCED.match(book[:2000]):
        book = book[produced.end() :]
    return book.strip("\n") + "\n", about
