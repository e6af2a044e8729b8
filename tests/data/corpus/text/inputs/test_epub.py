"""EPUB: the spine's text in its order, books that cannot be used, and archives that mean harm."""

import random
import tracemalloc
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from megagpt.data.corpus.text.inputs.epub import read_epub
from megagpt.data.corpus.text.page import Broken, Page

LIMIT = 1_000_000
CONTAINER = """<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>"""


def chapter(text: str) -> str:
    return f"""<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml"><head><title>file title</title><style>p {{}}</style></head>
<body><h2>Chapter</h2><p>{text}</p></body></html>"""


def package(hrefs: list[str], spine: list[str], more: str = "") -> str:
    kinds = {"ncx": "application/x-dtbncx+xml", "svg": "image/svg+xml"}
    items = "".join(
        f'<item id="{escape(href)}" href="{escape(href)}" '
        f'media-type="{kinds.get(href.rsplit(".")[-1], "application/xhtml+xml")}"/>'
        for href in hrefs
    )
    order = "".join(f'<itemref idref="{escape(name)}"/>' for name in spine)
    return f"""<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Mill</dc:title><dc:creator>Jane Doe</dc:creator>
<dc:creator>Second</dc:creator><dc:language>en</dc:language></metadata>
<manifest>{items}{more}</manifest><spine>{order}</spine></package>"""


def write(path: Path, files: dict[str, str | bytes], opf: str | None = None) -> Path:
    """An EPUB of `files` below OEBPS, read in the order of their names unless `opf` says otherwise."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("OEBPS/content.opf", opf or package(list(files), sorted(files)))
        for name, content in files.items():
            archive.writestr(f"OEBPS/{name}" if not name.startswith("META-INF") else name, content)
    return path


def read(path: Path, limit: int = LIMIT) -> Page | Broken:
    (made,) = read_epub(str(path), path.name, limit)
    return made


def test_chapters_come_in_the_spines_order_with_the_books_title(tmp_path):
    files = {
        "z.xhtml": chapter("First &amp; é."),
        "text/b c.xhtml": chapter("Second&#8212;here."),
        "a.xhtml": chapter("Third."),
    }
    opf = package(["z.xhtml", "text/b%20c.xhtml", "a.xhtml"], ["z.xhtml", "text/b%20c.xhtml", "a.xhtml"])
    book = read(write(tmp_path / "mill.epub", files, opf))
    assert [line for line in book.text.split("\n") if line] == [
        "Chapter",
        "First & é.",
        "Chapter",
        "Second—here.",
        "Chapter",
        "Third.",
    ]
    assert book.metadata == {"title": "The Mill", "author": "Jane Doe", "language": "en"}
    assert book.source == "mill.epub" and book.html is None
    assert book.bytes == sum(len(text.encode()) for text in (*files.values(), opf, CONTAINER))


def test_contents_pictures_and_notes_apart_are_not_the_text(tmp_path):
    files = {
        "nav.xhtml": chapter("Contents"),
        "a.xhtml": chapter("Text."),
        "note.xhtml": chapter("Note"),
        "p.svg": "<svg/>",
    }
    opf = package(["a.xhtml", "note.xhtml", "p.svg"], ["nav", "a.xhtml", "note.xhtml", "p.svg"])
    opf = opf.replace(
        "<manifest>", '<manifest><item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
    )
    opf = opf.replace('<itemref idref="note.xhtml"/>', '<itemref idref="note.xhtml" linear="no"/>')
    assert read(write(tmp_path / "a.epub", files, opf)).text == "Chapter\n\nText."


@pytest.mark.parametrize("href", ["../../../etc/passwd", "/etc/passwd", "..%2F..%2Fsecret.xhtml", "C:/secret.xhtml"])
def test_paths_that_lead_out_of_the_archive_are_refused(tmp_path, href):
    opf = package(["a.xhtml", href], ["a.xhtml", href])
    book = read(write(tmp_path / "a.epub", {"a.xhtml": chapter("Text.")}, opf))
    assert book.rule in ("unsafe path", "damaged file")  # C: is a folder's name below OEBPS
    path = write(tmp_path / "b.epub", {"a.xhtml": chapter("Text.")}, opf)
    with zipfile.ZipFile(path, "a") as archive:  # also where the archive has a member of that name
        archive.writestr(href, chapter("secret"))
    assert isinstance(read(path), Broken)


def test_nothing_is_written(tmp_path, monkeypatch):
    path = write(tmp_path / "a.epub", {"a.xhtml": chapter("Text.")})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    read(path)
    assert list((tmp_path / "empty").iterdir()) == []


def test_bombs_and_books_over_the_limit_cost_no_memory(tmp_path):
    bomb = write(tmp_path / "bomb.epub", {"a.xhtml": b" " * 100_000_000})
    noise = random.Random(0).randbytes(LIMIT).hex()
    assert read(bomb, limit=50_000_000).rule == "archive bomb"
    tracemalloc.start()
    assert read(bomb).rule == "too long"
    assert tracemalloc.get_traced_memory()[1] < 5 * LIMIT
    tracemalloc.stop()
    many = {f"{n}.xhtml": chapter(noise[: LIMIT // 4]) for n in range(5)}
    assert read(write(tmp_path / "many.epub", many)).rule == "too long"
    assert isinstance(read(tmp_path / "many.epub", 2 * LIMIT), Page)


def test_books_that_only_a_licence_opens(tmp_path):
    encryption = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:e="http://www.w3.org/2001/04/xmlenc#">
    <e:EncryptedData><e:CipherData><e:CipherReference URI="OEBPS/{}"/></e:CipherData></e:EncryptedData></encryption>"""
    files = {"a.xhtml": chapter("Text."), "META-INF/encryption.xml": encryption.format("font.otf")}
    opf = package(["a.xhtml"], ["a.xhtml"])
    assert "Text." in read(write(tmp_path / "font.epub", files, opf)).text
    files["META-INF/encryption.xml"] = encryption.format("a.xhtml")
    assert read(write(tmp_path / "locked.epub", files, opf))[2:] == ("encrypted", "OEBPS/a.xhtml")


def test_damaged_books_are_named(tmp_path):
    files = {"a.xhtml": chapter("Text."), "b.xhtml": chapter(random.Random(0).randbytes(5000).hex())}
    path = write(tmp_path / "a.epub", files)
    content = bytearray(path.read_bytes())
    content[content.index(b"b.xhtml") + 500] ^= 0xFF
    path.write_bytes(content)
    assert read(path).rule == "damaged file"
    path.write_bytes(content[: len(content) // 2])
    assert read(path)[:3] == ("a.epub", len(content) // 2, "damaged file")
    missing = read(write(tmp_path / "b.epub", files, package(["a.xhtml", "c.xhtml"], ["a.xhtml", "c.xhtml"])))
    assert missing[2:] == ("damaged file", "there is no OEBPS/c.xhtml in it")
    assert "manifest" in read(write(tmp_path / "c.epub", files, package(["a.xhtml"], ["x"]))).reason
    assert "spine" in read(write(tmp_path / "d.epub", files, package(["a.xhtml"], []))).reason
    assert read(write(tmp_path / "e.epub", files, "<package>")).rule == "damaged file"
    (tmp_path / "f.epub").write_bytes(b"no archive")
    assert read(tmp_path / "f.epub").rule == "damaged file"
    with zipfile.ZipFile(tmp_path / "g.epub", "w") as archive:
        archive.writestr("a.txt", "no book")
    assert read(tmp_path / "g.epub")[2:] == ("damaged file", "there is no META-INF/container.xml in it")


def test_markup_that_nests_without_end(tmp_path):
    hostile = "<html><body>" + "<div>" * 100_000 + "deep"
    assert read(write(tmp_path / "a.epub", {"a.xhtml": hostile})).text == "deep"
    ten = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    laughs = f'<!DOCTYPE p [<!ENTITY e0 "lol">{ten}]><package>&e9;</package>'
    assert read(write(tmp_path / "b.epub", {"a.xhtml": chapter("x")}, laughs)).rule == "damaged file"
