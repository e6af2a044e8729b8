"""Read books in EPUB: an archive of XHTML documents and their reading order. Nothing is written to disk.

EPUB 3.3, Open Container Format and Package Document: META-INF/container.xml names the package document. Its manifest
lists the files, and its spine lists the files of the book in order.
"""

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from megagpt.data.corpus.code.archives import MAX_RATIO, SLACK, unsafe
from megagpt.data.corpus.text.inputs.encodings import Undecodable, decode
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.errors import ConfigError

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_DOCUMENTS = ("application/xhtml+xml", "text/html")
_METADATA = {"title": "title", "creator": "author", "language": "language", "date": "date"}
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ElementTree.ParseError, OSError)


class _Refused(Exception):
    """A book that cannot be used: (rule, reason)."""


def read_epub(path: str, name: str, limit: int) -> Iterator[Page | Broken]:
    """The book in a file as one Page: the text of the documents in its spine, in that order. Or one Broken.

    name: name of the file in reports
    limit: largest size of all its documents together, in bytes
    """
    size = Path(path).stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            yield _read(_Book(archive, limit, size), name)
    except _Refused as refused:
        yield Broken(name, size, *refused.args)
    except _DAMAGED as error:
        if getattr(error, "errno", None):
            raise
        yield Broken(name, size, "damaged file", str(error))


class _Book:
    """The files in an archive, read one by one, with a limit on the expanded size."""

    def __init__(self, archive: zipfile.ZipFile, limit: int, size: int):
        self.archive, self.limit, self.allowed = archive, limit, MAX_RATIO * size + SLACK
        self.names = set(archive.namelist())
        self.taken = 0

    def read(self, name: str) -> bytes:
        """The content of a file. Raises _Refused."""
        if problem := unsafe(name):
            raise _Refused("unsafe path", f"{name}: {problem}")
        if name not in self.names:
            raise _Refused("damaged file", f"there is no {name} in it")
        left = min(self.limit, self.allowed) - self.taken
        try:
            with self.archive.open(name) as file:
                content = file.read(left + 1)
        except RuntimeError as error:  # zipfile raises it for files with a password
            raise _Refused("encrypted", str(error)) from None
        if len(content) > left:
            if self.allowed < self.limit:
                raise _Refused("archive bomb", f"it expands to more than {self.allowed} bytes")
            raise _Refused("too long", f"more than {self.limit} bytes")
        self.taken += len(content)
        return content


def _read(book: _Book, name: str) -> Page:
    package = _package_path(book)
    root = ElementTree.fromstring(book.read(package))
    encrypted = _encrypted(book)
    texts = []
    for href in _spine(root):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(href.split("#")[0])))
        if path in encrypted:
            raise _Refused("encrypted", path)
        if text := _text_of(book.read(path), path):
            texts.append(text)
    metadata: dict[str, str] = {}
    for element in root.iter():
        field = _METADATA.get(_local(element.tag)) if "purl.org/dc/" in str(element.tag) else None
        if field and (element.text or "").strip():
            metadata.setdefault(field, element.text.strip())
    return Page("\n\n".join(texts), name, book.taken, metadata=metadata)


def _package_path(book: _Book) -> str:
    for element in ElementTree.fromstring(book.read(CONTAINER)).iter():
        if _local(element.tag) == "rootfile" and element.get("full-path"):
            return element.get("full-path")
    raise _Refused("damaged file", f"{CONTAINER} names no package document")


def _encrypted(book: _Book) -> set[str]:
    """Encrypted files. Most books with such a list encrypt only their fonts."""
    if ENCRYPTION not in book.names:
        return set()
    elements = ElementTree.fromstring(book.read(ENCRYPTION)).iter()
    return {unquote(element.get("URI", "")) for element in elements if _local(element.tag) == "CipherReference"}


def _spine(root: ElementTree.Element) -> list[str]:
    """Files of the book in order, without the table of contents and non-linear parts."""
    items, order = {}, []
    for element in root.iter():
        if _local(element.tag) == "item":
            items[element.get("id")] = element
        elif _local(element.tag) == "itemref" and element.get("linear") != "no":
            order.append(element.get("idref"))
    if missing := [name for name in order if name not in items]:
        raise _Refused("damaged file", f"its spine names {missing[0]!r}, which its manifest does not")
    if not order:
        raise _Refused("damaged file", "its package document has no spine")
    chosen = [items[name] for name in order if "nav" not in items[name].get("properties", "").split()]
    return [item.get("href", "") for item in chosen if item.get("media-type") in _DOCUMENTS]


def _text_of(content: bytes, path: str) -> str:
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError:
        raise ConfigError('reading EPUB needs resiliparse: pip install "megagpt[corpora]"') from None
    try:
        html = decode(content, markup=True)[0]
    except Undecodable as error:
        raise _Refused("encoding", f"{path}: {error}") from None
    return extract_plain_text(html, main_content=False, alt_texts=False).strip()


def _local(tag: object) -> str:
    return str(tag).rsplit("}", 1)[-1]
