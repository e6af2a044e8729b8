"""Extracts the code in a chat model's response from Markdown code fences (CommonMark 0.31, section 4.5)."""

import re
from collections.abc import Sequence

_OPENING = re.compile(r"([ \t]*)(`{3,}(?=[^`]*$)|~{3,})")
"""Indentation and fence of an opening line; fences in lists are indented."""


def code_of(response: str, functions: Sequence[str]) -> tuple[str, bool]:
    """The code in a response that should define one of `functions`, and whether it was in a fence.

    Of several fences, returns the first one that defines such a function, else the first one; without a fence, the
    whole response. A fence that is not closed extends to the end of the response, which was cut there.
    """
    blocks = _blocks(response)
    if not blocks:
        return response, False
    return next((block for block in blocks if defines(block, functions)), blocks[0]), True


def defines(code: str, functions: Sequence[str]) -> bool:
    """Whether `code` defines one of `functions` at its top level."""
    return bool(re.search(rf"^(?:async )?def (?:{'|'.join(map(re.escape, functions))})\b", code, re.MULTILINE))


def _blocks(text: str) -> list[str]:
    """The content of all fences, in order."""
    blocks: list[list[str]] = []
    fence, indent = "", ""
    for line in text.split("\n"):  # not splitlines, because strings in the code may contain other line separators
        if fence:
            closing = line.strip()
            if closing and not closing.strip(fence[0]) and len(closing) >= len(fence):
                fence = ""
            else:
                blocks[-1].append(line.removeprefix(indent))
        elif opening := _OPENING.match(line):
            indent, fence = opening.groups()
            blocks.append([])
    return ["".join(f"{line}\n" for line in block) for block in blocks]
