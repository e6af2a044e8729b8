"""Stream the articles of MediaWiki's XML dumps, such as Wikipedia's, as plain text."""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import quote
from xml.parsers import expat

from megagpt.data.corpus.text.inputs.sandbox import Failed, Sandbox
from megagpt.data.corpus.text.page import Broken, Page

_READ = 1 << 16
_DAMAGED = (expat.ExpatError, OSError, EOFError, zlib.error, lzma.LZMAError)
_FILES, _CATEGORIES = "6", "14"
"""Keys of the namespaces whose links are not text. Their names depend on the wiki's language."""
_MODELS = ("wikitext", "")


def read_dump(path: str, name: str, limit: int) -> Iterator[Page | Broken]:
    """Every page of a dump (.bz2 with any number of streams, .gz or uncompressed).

    Articles (namespace 0) become Page; other namespaces, redirects and content other than wikitext become Broken. Of
    several revisions the last one counts.
    name: name of the dump in reports
    limit: largest size of an article in bytes; longer ones are not held in memory
    """
    opener = {".bz2": bz2.open, ".gz": gzip.open}.get("." + path.lower().rsplit(".", 1)[-1], open)
    reader = _Reader(limit)
    sandbox: Sandbox | None = None
    try:
        with opener(path, "rb") as stream:
            for fields in reader.pages(stream):
                if sandbox is None:
                    names = [*reader.namespaces[_FILES], *reader.namespaces[_CATEGORIES]]
                    sandbox = Sandbox("megagpt.data.corpus.text.inputs.wikitext:converter", json.dumps(names))
                yield _page_of(fields, name, reader.base, sandbox, limit)
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno:
            raise
        where = f"after {reader.done} pages" + (f", in {reader.title!r}" if reader.title else "")
        yield Broken(f"{name}:{reader.title}", 0, "damaged file", f"{error}, {where}; what follows in it is lost")
    finally:
        if sandbox:
            sandbox.close()


def _page_of(fields: dict[str, Any], name: str, base: str, sandbox: Sandbox, limit: int) -> Page | Broken:
    title = fields.get("title", "")
    source, size = f"{name}:{title}", fields.get("bytes", 0)
    if fields.get("ns", "0") != "0":
        return Broken(source, size, "namespace", fields["ns"])
    if "redirect" in fields:
        return Broken(source, size, "redirect", f"to {fields['redirect']}")
    if fields.get("model", "") not in _MODELS:
        return Broken(source, size, "content model", fields["model"])
    if fields.get("text") is None:
        return Broken(source, size, "too long", f"more than {limit} bytes")
    if not fields["text"].strip():
        return Broken(source, size, "empty", "no text")
    try:
        text = sandbox(fields["text"].encode())
    except Failed as error:
        return Broken(source, size, "wikitext", str(error))
    if not text.strip():
        return Broken(source, size, "empty", "nothing but templates, tables and links to files")
    url = base.rsplit("/", 1)[0] + "/" + quote(title.replace(" ", "_"), safe="/:@!$'()*,;") if "/" in base else None
    return Page(text, source, size, url, {"title": title, "date": fields.get("timestamp", "")})


class _Reader:
    """Reads pages from a stream of XML.

    namespaces: names by key
    base: URL of the main page
    title: title of the current page
    done: number of pages read so far
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.namespaces: dict[str, list[str]] = {_FILES: ["File", "Image"], _CATEGORIES: ["Category"]}
        self.base = self.title = ""
        self.done = 0
        self._path: list[str] = []
        self._pieces: list[str] = []
        self._size = 0
        self._key = ""
        self._page: dict[str, Any] | None = None
        self._ready: list[dict[str, Any]] = []

    def pages(self, stream: BinaryIO) -> Iterator[dict[str, Any]]:
        """The fields of each page: title, ns, redirect, timestamp, model, text (None: too long), bytes of text."""
        parser = expat.ParserCreate()
        parser.buffer_text, parser.buffer_size = True, _READ
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._characters
        parser.EntityDeclHandler = _refuse_entities
        try:
            while data := stream.read1(_READ):  # `read` would lose the bytes before damage
                parser.Parse(data)
                yield from self._taken()
            parser.Parse(b"", True)
        except _DAMAGED:
            yield from self._taken()  # the pages before the damage
            raise
        yield from self._taken()

    def _taken(self) -> Iterator[dict[str, Any]]:
        ready, self._ready = self._ready, []
        yield from ready

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        self._pieces, self._size = [], 0
        if tag == "page":
            self._page, self.title = {}, ""
        elif tag == "redirect" and self._page is not None:
            self._page["redirect"] = attributes.get("title", "")
        elif tag == "namespace":
            self._key = attributes.get("key", "")

    def _characters(self, data: str) -> None:
        self._size += len(data.encode())
        if self._size <= self.limit:
            self._pieces.append(data)

    def _end(self, tag: str) -> None:
        self._path.pop()
        parent = self._path[-1] if self._path else ""
        content = "".join(self._pieces) if self._size <= self.limit else None
        if tag == "page":
            self._ready.append(self._page)
            self._page, self.title, self.done = None, "", self.done + 1
        elif self._page is None:
            if tag == "namespace" and content and self._key in self.namespaces:
                self.namespaces[self._key].append(content)
            elif tag == "base":
                self.base = content or ""
        elif parent == "page" and tag in ("title", "ns"):
            self._page[tag] = content or ""
            self.title = self._page.get("title", "")
        elif parent == "revision" and tag in ("timestamp", "model"):
            self._page[tag] = content or ""
        elif parent == "revision" and tag == "text":
            self._page["text"], self._page["bytes"] = content, self._size
        self._pieces, self._size = [], 0


def _refuse_entities(name: str, *_: object) -> None:
    raise expat.ExpatError(f"it declares an entity ({name}), which no dump does")
