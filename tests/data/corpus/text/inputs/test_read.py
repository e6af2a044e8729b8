"""Files found and read: each kind's formats, everything counted, what is no file, and what several formats share."""

import gzip
import json
import os
import pickle
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megagpt.data.corpus.text.inputs.links import load_links
from megagpt.data.corpus.text.inputs.read import read_unit
from megagpt.data.corpus.text.inputs.units import FORMATS, format_of, list_units
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.errors import ConfigError, DataError

WET = """WARC/1.0\r
WARC-Type: conversion\r
WARC-Target-URI: https://example.org/a\r
Content-Type: text/plain\r
Content-Length: 11\r
\r
Hello there\r
\r
"""
DUMP = "<mediawiki><page><title>A</title><ns>0</ns><revision><text>Article.</text></revision></page></mediawiki>"


def folder(path: Path) -> Path:
    """A file of each format."""
    (path / "sub").mkdir(parents=True)
    (path / "crawl.warc.wet.gz").write_bytes(gzip.compress(WET.encode()))
    (path / "a.jsonl").write_text('{"text": "line one", "url": "http://b.example/"}\n{"text": ""}\nbad\n')
    (path / "page.html").write_text("<html><body><p>Paragraph</p></body></html>")
    (path / "sub" / "dump.xml").write_text(DUMP)
    (path / "sub" / "book.txt").write_text("A book.")
    with zipfile.ZipFile(path / "sub" / "none.epub", "w") as archive:
        archive.writestr("x", "y")
    pq.write_table(pa.table({"text": ["row"]}), path / "sub" / "rows.parquet")
    (path / "README").write_text("not a document")
    return path


def read(kind, *inputs, **options):
    return [made for unit in list_units(kind, inputs) for made in read_unit(unit, kind, **options)]


def what(made: list[Page | Broken]) -> dict[str, str]:
    return {each.source: each.rule if isinstance(each, Broken) else each.text or each.html.decode() for each in made}


EXPECTED = {
    "in/README": "format",
    "in/a.jsonl#1": "line one",
    "in/a.jsonl#2": "empty",
    "in/a.jsonl#3": "invalid JSON",
    "in/crawl.warc.wet.gz#1": "Hello there",
    "in/page.html": "<html><body><p>Paragraph</p></body></html>",
    "in/sub/book.txt": "A book.",
    "in/sub/dump.xml:A": "Article.\n",
    "in/sub/none.epub": "damaged file",
    "in/sub/rows.parquet#1": "row",
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_kind_reads_its_formats_and_counts_the_rest(tmp_path, kind):
    made = what(read(kind, folder(tmp_path / "in")))
    expected = {}
    for source, result in EXPECTED.items():
        path = source.split("#")[0].removesuffix(":A")
        taken = format_of(path) in FORMATS[kind]
        expected[source if taken else path] = result if taken else "format"
    assert made == expected


def test_a_file_that_the_kind_does_not_read_is_an_error_that_says_what_it_reads(tmp_path):
    path = folder(tmp_path / "in")
    with pytest.raises(DataError, match=r"page\.html: it is not read for --kind wiki.*\.xml \(\.bz2, \.gz\)"):
        list_units("wiki", [path / "page.html"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.pdf").write_text("x")
    with pytest.raises(DataError, match="other: there is no file in it that is read for --kind wiki"):
        list_units("wiki", [tmp_path / "other"])
    with pytest.raises(DataError, match="no such file or folder"):
        list_units("web", [tmp_path / "nowhere"])


def test_kinds_that_there_are_not(tmp_path):
    with pytest.raises(ConfigError, match="web, wiki, books, articles"):
        list_units("music", [tmp_path])


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("CC-MAIN-20240517233122-00000.warc.gz", "warc"),
        ("CC-MAIN-20240517233122-00000.warc.wet.gz", "warc"),
        ("CC-MAIN-20240517233122-00000.warc.wat.gz", None),
        ("a.WARC", "warc"),
        ("enwiki-20240501-pages-articles-multistream.xml.bz2", "dump"),
        ("enwiki-20240501-pages-articles1.xml-p1p41242.bz2", "dump"),
        ("enwiki-20240501-pages-articles-multistream-index.txt.bz2", None),
        ("part.0001.jsonl.zst", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.txt.gz", "text"),
        ("A.EPUB", "epub"),
        ("a.jsonl.gz.tmp", None),
        ("jsonl", None),
    ],
)
def test_formats_follow_from_names(name, form):
    assert format_of(name) == form


def test_order_names_and_what_is_named_twice(tmp_path):
    one, two = folder(tmp_path / "x" / "in"), folder(tmp_path / "y" / "in")
    units = list_units("books", [one / "sub" / "book.txt", one, two])
    assert [unit.name for unit in units if unit.format == "text"] == [
        "book.txt",
        f"{two.as_posix()}/sub/book.txt",
    ]
    again = list_units("books", [one])
    assert [unit.name for unit in again] == sorted(EXPECTED_FILES, key=lambda name: (name.count("/"), name))
    assert pickle.loads(pickle.dumps(again)) == again
    sizes = {unit.name: unit.bytes for unit in again}
    assert sizes["in/sub/book.txt"] == 7 and all(unit.modified > 0 for unit in again)


EXPECTED_FILES = {source.split("#")[0].removesuffix(":A") for source in EXPECTED}


def test_links_and_special_files_are_not_followed(tmp_path):
    path = folder(tmp_path / "in")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    (path / "link.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (path / "folder").symlink_to(tmp_path / "outside")
    (path / "loop").symlink_to(path)
    os.mkfifo(path / "pipe.txt")
    made = what(read("books", path))
    for name in ("link.txt", "folder", "loop", "pipe.txt"):
        assert made[f"in/{name}"] == "not a regular file"
    assert "secret" not in str(made)


def test_a_file_that_went_away_or_may_not_be_read(tmp_path):
    path = folder(tmp_path / "in")
    units = list_units("books", [path / "sub" / "book.txt"])
    (path / "sub" / "book.txt").unlink()
    assert list(read_unit(units[0], "books")) == [Broken("book.txt", 7, "unreadable", "No such file or directory")]


def test_names_of_any_bytes(tmp_path):
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + b"/\xff.txt", "w") as file:  # noqa: PTH123
        file.write("text")
    (made,) = read("books", tmp_path / "in")
    assert made.source == "in/\ufffd.txt" and made.text == "text"


def test_texts_in_any_encoding_with_any_line_ends(tmp_path):
    text = "Ein Mädchen läuft über die Straße.\r\nEs hört schöne Musik.\r\n" * 20
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    (tmp_path / "c.txt").write_bytes(text.encode("utf-16"))
    (tmp_path / "d.txt").write_bytes(b"a\0b")
    (tmp_path / "e.txt").write_bytes(bytes(range(128, 256)) * 3 + bytes(range(256)))
    (tmp_path / "f.txt").write_text("x" * 2000)
    a, b, c, d, e, f = read("books", tmp_path, max_bytes=len(text) * 2 + 2)
    assert a.text == b.text == c.text == text.replace("\r\n", "\n")
    assert (a.metadata, b.metadata, c.metadata) == ({"encoding": "cp1252"}, {}, {"encoding": "utf-16-le"})
    assert (d.rule, d.reason) == ("NUL", "at character 1")
    assert e.rule in ("encoding", "NUL")
    assert f.text == "x" * 2000
    assert read("books", tmp_path / "f.txt", max_bytes=1999)[0].rule == "too long"


def test_gutenbergs_licence_goes_from_books_only(tmp_path):
    mark = "*** {} OF THE PROJECT GUTENBERG EBOOK X ***\n"
    book = "Title: X\n" + mark.format("START") + "The book.\n" + mark.format("END")
    (tmp_path / "a.txt").write_text(book)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": book, "title": "Stated"}))
    one, two = read("books", tmp_path)
    assert one.text == two.text == "The book.\n"
    assert (one.metadata, two.metadata) == ({"title": "X"}, {"title": "Stated"})
    assert one.bytes == len(book)
    assert read("articles", tmp_path)[0].text == book


def test_only_pages_that_links_lead_to_pass(tmp_path):
    path = folder(tmp_path / "in")
    (tmp_path / "links.tsv").write_text("http://example.org/a/\t9\nhttp://b.example\t1\n")
    made = what(read("web", path, links=load_links([tmp_path / "links.tsv"])))
    assert made["in/crawl.warc.wet.gz#1"] == "Hello there"
    assert made["in/a.jsonl#1"] == made["in/page.html"] == made["in/sub/rows.parquet#1"] == "link score"
    assert made["in/a.jsonl#3"] == "invalid JSON"


def test_the_texts_key(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "here"}')
    assert read("articles", tmp_path, key="content")[0].text == "here"
    pq.write_table(pa.table({"other": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no column 'content'"):
        read("articles", tmp_path, key="content")


def test_damaged_files_of_every_format_end_as_broken_records(tmp_path):
    path = folder(tmp_path / "in")
    for file in [each for each in path.rglob("*") if each.is_file()]:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    for kind in FORMATS:
        for made in read(kind, path):
            assert isinstance(made, Page | Broken)


def test_real_text_reads_as_a_plain_loop_reads_it(data_dir):
    path = data_dir / "wiki_c4_demo" / "c4_demo.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        expected = [json.loads(line)["text"] for line in file]
    assert [page.text for page in read("web", path)] == expected
