"""Convert wikitext to plain text with mwparserfromhell: the running text of the article.

Left out: templates, tables, references, galleries, links to files and categories, magic words, comments. Kept: text,
headings on separate lines, items of lists as lines that begin with "- ".
"""

import html
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from megagpt.errors import ConfigError

_DROPPED = {"ref", "references", "table", "gallery", "math", "chem", "timeline", "score", "imagemap", "style", "hiero"}
_DROPPED |= {"script", "graph", "mapframe", "maplink", "templatestyles", "section", "indicator", "inputbox", "ce"}
_BLOCKS = {"div", "p", "blockquote", "poem", "center", "br", "hr", "pre", "syntaxhighlight", "source"}
_ITEMS = {"li", "dt", "dd"}
_MAGIC = re.compile(r"__[A-Z]{3,}__|'{2,}")
"""Switches such as __NOTOC__, and marks of bold and italics."""
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*")
"""A link with such a prefix leads to the article in that language; it is not part of the text."""
_BLANKS = re.compile(r"[ \t\xa0]+")
_EDGES = re.compile(r"^ *-? *$|^ +| +$", re.M)
"""Blanks around lines, and list items that consisted only of a template."""
_GAPS = re.compile(r"\n{3,}")
_LEFT_EMPTY = re.compile(r" *\(\s*[,;:]*\s*\)| +(?=[,.;:)](?:\s|$))|(?<=\()\s*[,;:]\s*")
"""Brackets and blanks around removed templates, such as the pronunciation after a title."""
_HEADING = "\x01"
"""Mark before and after each heading, with its level, until the text is complete."""


def converter(options: str) -> Callable[[bytes], str]:
    """The function from wikitext (UTF-8) to text.

    options: JSON list of the namespaces whose links are left out

    Raises ConfigError without mwparserfromhell.
    """
    try:
        import mwparserfromhell
    except ImportError:
        raise ConfigError('reading wikitext needs mwparserfromhell: pip install "megagpt[corpora]"') from None
    hidden = {name.casefold() for name in json.loads(options)}

    def convert(source: bytes) -> str:
        pieces: list[str] = []
        code = mwparserfromhell.parse(source.decode().replace(_HEADING, ""), skip_style_tags=True)
        _write(code.nodes, pieces, hidden)
        return _tidy("".join(pieces))

    return convert


def _write(nodes: Iterable[Any], pieces: list[str], hidden: set[str]) -> None:
    from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink

    for node in nodes:
        if isinstance(node, Text):
            pieces.append(node.value)
        elif isinstance(node, Wikilink):
            _write_link(node, pieces, hidden)
        elif isinstance(node, ExternalLink):
            if node.title is not None:
                _write(node.title.nodes, pieces, hidden)
            elif not node.brackets:
                pieces.append(str(node.url))
        elif isinstance(node, Heading):
            pieces.append(f"{_HEADING}{node.level}")
            _write(node.title.nodes, pieces, hidden)
            pieces.append(_HEADING)
        elif isinstance(node, HTMLEntity):
            pieces.append(html.unescape(str(node)))
        elif isinstance(node, Tag):
            _write_tag(node, pieces, hidden)


def _write_link(node: Any, pieces: list[str], hidden: set[str]) -> None:
    title = str(node.title).strip()
    prefix, colon, rest = title.partition(":")
    if colon and rest and prefix.strip().casefold() in hidden:
        return
    if node.text is not None:
        _write(node.text.nodes, pieces, hidden)
    elif not (colon and _LANGUAGE.fullmatch(prefix)):
        pieces.append(title.lstrip(":"))


def _write_tag(node: Any, pieces: list[str], hidden: set[str]) -> None:
    tag = str(node.tag).strip().lower()
    if tag in _DROPPED:
        return
    if tag in _ITEMS and node.wiki_markup:
        begins = not pieces or pieces[-1].endswith("\n")
        pieces.append(("- " if tag == "li" else "") if begins else ": " if node.wiki_markup == ":" else " ")
        return
    around = "\n" if tag in _BLOCKS or tag in _ITEMS else ""
    pieces.append(around + ("- " if tag == "li" else ""))
    if node.contents is not None:
        _write(node.contents.nodes, pieces, hidden)
    pieces.append(around)


def _tidy(text: str) -> str:
    lead, *rest = _MAGIC.sub("", text).split(_HEADING)
    kept, below = [], 0
    for heading, body in zip(rest[-2::-2], rest[-1::-2], strict=True):  # from the end
        level, title = int(heading[0]), heading[1:].strip()
        if body.strip(" \t\n-") or below > level:  # drop a heading without text: it had references or a table
            kept.append(f"\n\n{title}\n\n{body}")
            below = level
    text = _BLANKS.sub(" ", "".join([lead, *reversed(kept)]))
    return _GAPS.sub("\n\n", _EDGES.sub("", _LEFT_EMPTY.sub("", text))).strip() + "\n"
