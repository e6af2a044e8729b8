"""Read the pages in a file of the input, in any format."""

from collections.abc import Iterator
from dataclasses import replace

from megagpt.data.corpus.text.inputs.dump import read_dump
from megagpt.data.corpus.text.inputs.epub import read_epub
from megagpt.data.corpus.text.inputs.files import read_file
from megagpt.data.corpus.text.inputs.gutenberg import cut_gutenberg
from megagpt.data.corpus.text.inputs.links import Links
from megagpt.data.corpus.text.inputs.records import read_jsonl, read_parquet
from megagpt.data.corpus.text.inputs.units import Kind, Unit
from megagpt.data.corpus.text.inputs.warc import read_warc
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.data.readers import MAX_RECORD_BYTES


def read_unit(
    unit: Unit, kind: Kind, links: Links | None = None, key: str = "text", max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[Page | Broken]:
    """A Page for every usable record of a file, and a Broken with the reason for every other record.

    links: keeps only pages whose URL has a sufficient score in it
    key: key of the text in lines of JSON, or its column in parquet files
    max_bytes: largest size of a record; memory is at most a few times that

    Raises DataError when the file has no such column, and OSError when a disk fails.
    """
    if unit.refusal:
        yield Broken(unit.name, unit.bytes, *unit.refusal)
        return
    try:
        with open(unit.path, "rb"):  # noqa: PTH123
            pass
    except OSError as error:
        yield Broken(unit.name, unit.bytes, "unreadable", error.strerror)
        return
    for page in _records(unit, key, max_bytes):
        yield page if isinstance(page, Broken) else _checked(page, kind, links)


def _records(unit: Unit, key: str, limit: int) -> Iterator[Page | Broken]:
    path, name = unit.path, unit.name
    match unit.format:
        case "warc":
            with open(path, "rb") as raw:  # noqa: PTH123
                yield from read_warc(raw, name, limit)
        case "jsonl":
            yield from read_jsonl(path, unit.bytes, name, key, limit)
        case "parquet":
            yield from read_parquet(path, name, key, limit)
        case "dump":
            yield from read_dump(path, name, limit)
        case "epub":
            yield from read_epub(path, name, limit)
        case "html" | "text":
            yield from read_file(path, unit.bytes, name, limit, markup=unit.format == "html")


def _checked(page: Page, kind: Kind, links: Links | None) -> Page | Broken:
    if links and (rejection := links.reject(page)):
        return rejection
    if "\0" in page.text:
        return Broken(page.source, page.bytes, "NUL", f"at character {page.text.index(chr(0))}")
    if kind == "books":
        text, about = cut_gutenberg(page.text)
        page = replace(page, text=text, metadata=about | page.metadata)
    if page.html is None and not page.text.strip():
        return Broken(page.source, page.bytes, "empty", "no text")
    return page
