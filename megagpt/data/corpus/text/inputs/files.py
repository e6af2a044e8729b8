"""Read files with one document each: plain text or HTML."""

from collections.abc import Iterator

from megagpt.data.corpus.text.inputs.encodings import Undecodable, decode
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.data.readers import Position, Rejection, Source, chunks


def read_file(path: str, size: int, name: str, limit: int, markup: bool = False) -> Iterator[Page | Broken]:
    """The document in a file (.gz, .zst or uncompressed): text in any encoding or, if `markup`, HTML.

    The metadata name an encoding other than UTF-8.
    size: size of the file in bytes
    name: name of the file in reports
    limit: largest size of the document in bytes
    """
    for chunk in chunks([Source(path, size, "text")], "", limit, Position()):
        for item in chunk.items:
            if isinstance(item, Rejection):
                yield Broken(name, size, item.kind, item.detail or item.kind)
                continue
            yield _page_of(item.records, name, markup)


def _page_of(content: bytes, name: str, markup: bool) -> Page | Broken:
    try:
        text, encoding = decode(content, markup=markup)
    except Undecodable as error:
        return Broken(name, len(content), "encoding", str(error))
    if markup:
        return Page("", name, len(content), html=text.encode())
    text = text.replace("\r\n", "\n")
    return Page(text, name, len(content), metadata={} if encoding == "utf-8" else {"encoding": encoding})
