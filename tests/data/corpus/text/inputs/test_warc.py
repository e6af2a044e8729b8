"""WARC and WET files with Common Crawl's headers: what is a page, what is not, and what damage costs."""

import gzip
import io
import random
import tracemalloc
import zlib

import pytest
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from megagpt.data.corpus.text.inputs.warc import read_warc
from megagpt.data.corpus.text.page import Broken, Page

LIMIT = 1_000_000
HTML = "<!DOCTYPE html><html><body><p>Une page déjà lue.</p></body></html>"


class Crawl:
    """Writes the records that Common Crawl writes."""

    def __init__(self, zipped: bool = True):
        self.file = io.BytesIO()
        self.writer = WARCWriter(self.file, gzip=zipped)
        self.starts: list[int] = []

    def info(self):
        return self._write(self.writer.create_warcinfo_record("CC-MAIN-0.warc.gz", {"isPartOf": "CC-MAIN-2024-22"}))

    def page(self, body: bytes, url="https://example.org/a", status="200 OK", kind="text/html; charset=UTF-8", **more):
        http = StatusAndHeaders(status, [("Content-Type", kind)] if kind else [], protocol="HTTP/1.1")
        for name in ("Content-Encoding", "Transfer-Encoding"):
            if name in more:
                http.headers.append((name, more.pop(name)))
        headers = {"WARC-IP-Address": "192.0.2.1", **more}
        return self._write(
            self.writer.create_warc_record(
                url, "response", io.BytesIO(body), http_headers=http, warc_headers_dict=headers
            )
        )

    def request(self):
        http = StatusAndHeaders("GET /a HTTP/1.1", [("Host", "example.org")], is_http_request=True)
        return self._write(self.writer.create_warc_record("https://example.org/a", "request", http_headers=http))

    def text(self, text: str | bytes, url="https://example.org/a", kind="text/plain"):
        body = text.encode() if isinstance(text, str) else text
        headers = {"WARC-Identified-Content-Language": "eng", "WARC-Date": "2024-05-18T01:58:10Z"}
        return self._write(
            self.writer.create_warc_record(
                url, "conversion", io.BytesIO(body), warc_content_type=kind, warc_headers_dict=headers
            )
        )

    def _write(self, record):
        self.starts.append(self.file.tell())
        self.writer.write_record(record)
        return self

    @property
    def content(self) -> bytes:
        return self.file.getvalue()


def read(content: bytes, limit: int = LIMIT) -> list[Page | Broken]:
    return list(read_warc(io.BytesIO(content), "crawl", limit))


def only(content: bytes, limit: int = LIMIT) -> Page | Broken:
    (made,) = read(content, limit)
    return made


def why(made: Page | Broken) -> str | None:
    return made.rule if isinstance(made, Broken) else None


@pytest.mark.parametrize("zipped", [True, False])
def test_records_are_what_warcio_reads(zipped):
    crawl = Crawl(zipped).info().page(HTML.encode()).request().page(b"<html>two</html>", url="http://b.example/?q=1")
    pages = [made for made in read(crawl.content) if isinstance(made, Page)]
    expected = [record for record in ArchiveIterator(io.BytesIO(crawl.content)) if record.rec_type == "response"]
    assert [page.url for page in pages] == [record.rec_headers.get_header("WARC-Target-URI") for record in expected]
    records = ArchiveIterator(io.BytesIO(crawl.content))
    bodies = [record.content_stream().read() for record in records if record.rec_type == "response"]
    assert [page.html for page in pages] == bodies
    assert [page.source for page in pages] == ["crawl#2", "crawl#4"]
    assert [page.bytes for page in pages] == [int(r.rec_headers.get_header("Content-Length")) for r in expected]
    assert [why(made) for made in read(crawl.content)] == ["record type", None, "record type", None]


def test_text_of_wet_files_has_no_payload_type_and_may_look_like_anything():
    texts = [
        "From: a@b.c\nSubject: mail",
        "a,b\n1,2\n",
        '{"a": 1}',
        "#!/bin/sh\nls",
        "#include <stdio.h>",
        "naïve 中文",
    ]
    crawl = Crawl().info()
    for text in texts:
        crawl.text(text)
    made = read(crawl.content)
    assert [page.text for page in made[1:]] == texts
    assert made[1].url == "https://example.org/a" and made[1].metadata == {"date": "2024-05-18T01:58:10Z"}
    assert made[1].html is None


def test_what_is_no_page_is_named():
    gone = only(Crawl().page(b"<html>gone</html>", status="404 Not Found").content)
    assert (gone.rule, gone.reason) == ("HTTP status", "404")
    assert why(only(Crawl().page(b"%PDF-1.4", kind="application/pdf").content)) == "content type"
    assert why(only(Crawl().page(b"nothing", kind=None).content)) == "content type"
    assert why(only(Crawl().page(b"\n <!doctype html><p>hi", kind=None).content)) is None
    assert why(only(Crawl().page(b"<html/>", kind="application/xhtml+xml").content)) is None
    # Common Crawl looked into it, and the server was wrong.
    pdf = Crawl().page(b"%PDF", **{"WARC-Identified-Payload-Type": "application/pdf"})
    assert only(pdf.content)[2:] == ("content type", "application/pdf")
    html = Crawl().page(b"<html>", kind="text/plain", **{"WARC-Identified-Payload-Type": "text/html"})
    assert why(only(html.content)) is None


@pytest.mark.parametrize(
    ("body", "stated"),
    [
        (HTML.encode("latin-1"), "text/html; charset=ISO-8859-1"),
        (HTML.encode("latin-1"), 'text/html; charset="latin1"'),
        (HTML.encode(), "text/html; charset=ISO-8859-1"),  # wrong, as often
        (HTML.encode(), "text/html"),
        (HTML.encode("utf-16"), "text/html"),
        (HTML.encode("latin-1"), "text/html; charset=UTF-8"),
        (HTML.encode("latin-1"), "text/html; charset=nonsense"),
        (HTML.replace("<body>", "<meta charset='windows-1252'><body>").encode("cp1252"), "text/html"),
    ],
)
def test_encodings_stated_or_not_become_utf8(body, stated):
    assert "Une page déjà lue." in only(Crawl().page(body, kind=stated).content).html.decode()


def test_truncated_pages_are_kept_and_say_so():
    cut = HTML.encode()[: HTML.encode().index("é".encode()) + 1]  # within a character
    page = only(Crawl().page(cut, **{"WARC-Truncated": "length"}).content)
    assert page.metadata["truncated"] == "length"
    assert page.html.decode() == HTML[: HTML.index("é")]


def test_encoded_bodies_are_decoded_also_where_the_header_is_left_over():
    body = HTML.encode()
    zipped = gzip.compress(body)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(zipped), zipped)
    for content, headers in [
        (zipped, {"Content-Encoding": "gzip"}),
        (chunked, {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}),
        (body, {"Content-Encoding": "gzip"}),
        (body, {"Transfer-Encoding": "chunked"}),
    ]:
        assert only(Crawl().page(content, **headers).content).html == body
    assert why(only(Crawl().page(b"\x01\x02", **{"Content-Encoding": "br"}).content)) == "content encoding"


def test_a_page_that_expands_too_far_costs_no_memory():
    bomb = gzip.compress(b"<html>" + bytes(200_000_000))
    content = Crawl().page(bomb, **{"Content-Encoding": "gzip"}).page(HTML.encode()).content
    tracemalloc.start()
    made = read(content)
    assert tracemalloc.get_traced_memory()[1] < 10 * LIMIT
    tracemalloc.stop()
    assert [why(each) for each in made] == ["too long", None]


def test_records_over_the_limit_are_named_and_reading_goes_on():
    for zipped in (True, False):
        crawl = Crawl(zipped).text("short").text(random.Random(0).randbytes(3 * LIMIT).hex()).text("after")
        assert [why(made) for made in read(crawl.content)] == [None, "too long", None]


def five_pages(zipped: bool = True) -> Crawl:
    words = random.Random(0)
    crawl = Crawl(zipped)
    for number in range(5):
        crawl.text(f"page {number} " + " ".join(words.choices(["one", "two", "three", "vier"], k=300)))
    return crawl


@pytest.mark.parametrize("where", ["magic", "deflate", "checksum", "length"])
def test_a_damaged_member_is_one_broken_record_and_no_more(where):
    crawl = five_pages()
    sound, content, (start, end) = read(crawl.content), bytearray(crawl.content), crawl.starts[2:4]
    place = {"magic": start, "deflate": (start + end) // 2, "checksum": end - 7, "length": end - 1}[where]
    content[place] ^= 0xFF
    made = read(bytes(content))
    assert [why(each) for each in made] == [None, None, "damaged record", None, None]
    assert made[:2] + made[3:] == sound[:2] + sound[3:]
    assert made[2].source == "crawl#3" and made[2].bytes == end - start and f"byte {start} " in made[2].reason


def test_any_damaged_byte_is_named_and_spares_the_other_members():
    crawl = five_pages()
    sound, ends = read(crawl.content), [*crawl.starts[1:], len(crawl.content)]
    for place in range(len(crawl.content)):
        content = bytearray(crawl.content)
        content[place] ^= random.Random(place).randrange(1, 256)
        hit = next(number for number, end in enumerate(ends) if place < end)
        made = read(bytes(content))
        others = [each for number, each in enumerate(sound) if number != hit]
        assert [each for each in made if each.source != f"crawl#{hit + 1}"] == others
        # Some bytes of a gzip header (its time, its system) mean nothing.
        assert len(made) == 5 and (why(made[hit]) == "damaged record" or made[hit] == sound[hit])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_off_anywhere_names_what_is_lost(zipped):
    crawl = five_pages(zipped)
    sound = read(crawl.content)
    for length in random.Random(2).sample(range(1, len(crawl.content)), 200):
        begun = sum(start < length for start in crawl.starts)
        made = read(crawl.content[:length])
        assert len(made) == begun and made[:-1] == sound[: begun - 1]
        # Of an uncompressed record, only the line ends behind it may be missing.
        assert why(made[-1]) == "damaged record" or made[-1] == sound[begun - 1]
    assert [why(each) for each in read(crawl.content[: crawl.starts[3] + 9])] == [None, None, None, "damaged record"]


def test_damage_in_an_uncompressed_file_costs_one_record():
    crawl = five_pages(zipped=False)
    sound, content = read(crawl.content), bytearray(crawl.content)
    content[crawl.starts[2] : crawl.starts[2] + 4] = b"JUNK"
    made = read(bytes(content))
    assert [why(each) for each in made] == [None, None, "damaged record", None, None]
    assert made[:2] + made[3:] == sound[:2] + sound[3:]


def test_what_follows_the_last_sound_record_is_named_lost():
    crawl = five_pages()
    made = read(crawl.content + b"garbage" * 100)
    assert len(made) == 6 and made[5].bytes == 700 and "lost" in made[5].reason
    assert [why(each) for each in read(b"This is no WARC file.\n" * 50)] == ["damaged record"]
    assert [why(each) for each in read(gzip.compress(b"Nor is this.\n" * 50))] == ["damaged record"]
    assert read(b"") == []


def test_a_gzip_file_of_one_member_is_read_record_by_record():
    crawl = five_pages(zipped=False)
    assert read(gzip.compress(crawl.content)) == read(crawl.content)


def test_a_member_that_is_a_bomb_is_left():
    engine = zlib.compressobj(9, wbits=31)
    head = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: 500000000\r\n\r\n"
    bomb = b"".join([engine.compress(head), *(engine.compress(bytes(1_000_000)) for _ in range(500)), engine.flush()])
    crawl = five_pages()
    made = read(bomb + crawl.content)
    assert [why(each) for each in made] == ["damaged record", *[None] * 5]
    assert "expands" in made[0].reason


def test_headers_that_miss_what_matters():
    record = b"WARC/1.0\r\nWARC-Type: conversion\r\n\r\n"
    assert why(read(record)[0]) == "damaged record"
    # An HTTP response without a status line, and one whose headers never end.
    for block in (b"no headers at all", b"HTTP/1.1 200 OK\r\n" + b"a" * 50_000):
        head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n" % len(block)
        assert why(only(head + block + b"\r\n\r\n")) == "HTTP headers"


def test_text_that_is_in_no_encoding_is_named():
    noise = random.Random(0).randbytes(5000)
    assert why(only(Crawl().text(noise).content)) == "encoding"
