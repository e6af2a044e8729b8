"""Read WARC files of crawls (HTML) and WET files (text that the crawler extracted), `.gz` or not.

The headers of a record decide its kind. Common Crawl's WET records have no payload type; its WARC records have two: the
type that the server stated, and the type that the crawler found. Damage loses only the damaged record if the next one
can be found; gzip members and records both begin with known bytes.
"""

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from megagpt.data.corpus.code.archives import MAX_RATIO, SLACK
from megagpt.data.corpus.text.inputs.encodings import Undecodable, decode
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

HTML_TYPES = ("text/html", "application/xhtml+xml")
DAMAGED = "damaged record"

_READ = 1 << 16
_SEARCH = 1 << 20
_GZIP = b"\x1f\x8b\x08"
_RECORD = b"WARC/1."
_TYPE = re.compile(r"\s*([\w.+-]+/[\w.+-]+)")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w:.-]+)", re.I)
_MARKUP = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", re.I | re.S)


class _Damage(Exception):
    """The bytes of a section are not what was written."""


class _Plain:
    """The rest of an uncompressed file, from `start` on."""

    def __init__(self, raw: BinaryIO, start: int):
        self.raw, self.start = raw, start
        raw.seek(start)

    def read(self, size: int = _READ) -> bytes:
        """At most `size` bytes."""
        return self.raw.read(size)

    def tell(self) -> int:
        """Number of bytes read; fastwarc calls this."""
        return self.raw.tell() - self.start

    def end(self) -> int:
        """Position of the next section."""
        return self.raw.seek(0, io.SEEK_END)


class _Member:
    """The uncompressed bytes of the gzip member at `start`. By the standard, a member holds one record."""

    def __init__(self, raw: BinaryIO, start: int):
        self.raw, self.start = raw, start
        self.engine = zlib.decompressobj(wbits=31)
        self.taken = self.given = 0
        raw.seek(start)

    def read(self, size: int = _READ) -> bytes:
        """At most `size` bytes, perhaps fewer; b"" at the end. Raises _Damage."""
        while not self.engine.eof:
            data = self.engine.unconsumed_tail or self.raw.read(_READ)
            try:
                piece = self.engine.decompress(data, max(1, size))
            except zlib.error as error:
                raise _Damage(f"cannot be decompressed ({error})") from None
            self.taken += len(data) - len(self.engine.unused_data if self.engine.eof else self.engine.unconsumed_tail)
            self.given += len(piece)
            if self.given > MAX_RATIO * self.taken + SLACK:
                raise _Damage(f"expands to more than {MAX_RATIO} times its size")
            if piece:
                return piece
            if not data:
                raise _Damage("is cut off")
        return b""

    def tell(self) -> int:
        """Number of uncompressed bytes returned; fastwarc calls this."""
        return self.given

    def end(self) -> int:
        """Position of the next section. Raises _Damage if the rest of this one is damaged."""
        while self.read():
            pass
        return self.start + self.taken


def read_warc(raw: BinaryIO, name: str, limit: int) -> Iterator[Page | Broken]:
    """A Page for every record of a file with a page, and a Broken with the reason for every other record.

    raw: the opened file
    name: name of the file in reports
    limit: largest size of a record in bytes; longer ones are not held in memory

    Raises OSError when the disk fails, ConfigError without fastwarc.
    """
    size = raw.seek(0, io.SEEK_END)
    zipped = _is_zipped(raw)
    number, start = 0, 0
    while start < size:
        section = _Member(raw, start) if zipped else _Plain(raw, start)
        begin, made, begun = start, None, False  # `made` waits until its whole member has been read without damage
        try:
            for record in _records(section):
                if made:
                    yield made
                number, made, begun = number + 1, None, True
                made = _made_of(record, f"{name}#{number}", limit)
                begin = start if zipped else start + record.stream_pos + made.bytes
            start = section.end()
        except (_Damage, OSError) as error:
            if getattr(error, "errno", None):
                raise  # an error of the disk, not of the library
            damage = error if isinstance(error, _Damage) else _damage_in(section)
            if made and not damage:
                yield made  # the error came after this record
                begun = False
            number += not begun
            start = _find_record(raw, begin + 1, zipped) or size
            rest = "; what follows in the file is lost" if start == size else ""
            yield Broken(f"{name}#{number}", start - begin, DAMAGED, f"from byte {begin} on: {damage or error}{rest}")
        else:
            if made:
                yield made


def _is_zipped(raw: BinaryIO) -> bool:
    raw.seek(0)
    head = raw.read(len(_RECORD))
    # If the file begins with neither, its first record is damaged, and later records decide.
    return head != _RECORD and (head.startswith(_GZIP) or _find_record(raw, 0, zipped=True) is not None)


def _damage_in(section: _Member | _Plain) -> _Damage | None:
    """The damage of a section that fastwarc could not parse; None if its bytes are intact."""
    try:
        section.end()
    except _Damage as damage:
        return damage
    return None


def _records(section: _Member | _Plain) -> Iterator["WarcRecord"]:
    try:
        from fastwarc.warc import ArchiveIterator
    except ImportError:
        raise ConfigError('reading WARC files needs fastwarc: pip install "megagpt[corpora]"') from None
    return iter(ArchiveIterator(section, parse_http=False, stream_detect=False))


def _find_record(raw: BinaryIO, start: int, zipped: bool) -> int | None:
    """Position of the next record, or of its gzip member, from `start` on; None if there is none."""
    mark, before = (_GZIP, 0) if zipped else (b"\r\n\r\n" + _RECORD, 4)
    raw.seek(start)
    held = b""
    while data := raw.read(_SEARCH):
        held += data
        place = held.find(mark)
        while place >= 0:
            if not zipped or _is_record(held[place : place + _READ]):
                return start + place + before
            place = held.find(mark, place + 1)
        keep = min(len(held), _READ if zipped else len(mark))
        start, held = start + len(held) - keep, held[-keep:]
    return None


def _is_record(data: bytes) -> bool:
    with suppress(zlib.error):
        return zlib.decompressobj(wbits=31).decompress(data, len(_RECORD)) == _RECORD
    return False


def _made_of(record: "WarcRecord", source: str, limit: int) -> Page | Broken:
    headers = {key.lower(): value for key, value in record.headers.to_tuples()}
    kind, size = headers.get("warc-type", "").lower(), record.content_length
    if "content-length" not in headers or not kind:
        return Broken(source, size, DAMAGED, "no WARC-Type or Content-Length in its headers")
    if kind not in ("conversion", "response"):
        return Broken(source, size, "record type", kind)
    block = record.reader.read(limit + 1)
    if len(block) > limit:
        return Broken(source, size, "too long", f"more than {limit} bytes")
    if len(block) < size:
        return Broken(source, size, DAMAGED, f"cut off: {len(block)} of {size} bytes")
    page = Page("", source, size, headers.get("warc-target-uri", "").strip("<> ") or None)
    page.metadata = {key: headers[field] for key, field in _METADATA.items() if headers.get(field)}
    try:
        return _with_text(page, block, headers) if kind == "conversion" else _with_html(page, block, headers, limit)
    except Undecodable as error:
        return Broken(source, size, "encoding", str(error))


_METADATA = {"date": "warc-date", "truncated": "warc-truncated"}


def _with_text(page: Page, block: bytes, headers: dict[str, str]) -> Page | Broken:
    stated = headers.get("content-type", "")
    if _media_type(stated) not in ("text/plain", ""):
        return Broken(page.source, page.bytes, "content type", stated)
    page.text = decode(block, _charset(stated))[0]
    return page


def _with_html(page: Page, block: bytes, headers: dict[str, str], limit: int) -> Page | Broken:
    from fastwarc.warc import WarcRecord, response

    def parsed(decoding: str) -> tuple[WarcRecord, bytes]:
        record = WarcRecord()
        record.init_headers(response)
        record.is_http = True
        record.set_bytes_content(block)
        record.parse_http(auto_decode=decoding)
        return record, record.reader.read(limit + 1)

    try:
        record, body = parsed("all")
    except OSError as error:
        try:
            record, body = parsed("none")  # Common Crawl and others store bodies that are already decoded
        except OSError:
            return Broken(page.source, page.bytes, "HTTP headers", str(error))
        if not _MARKUP.match(body):
            return Broken(page.source, page.bytes, "content encoding", str(error))
    http = {key.lower(): value for key, value in record.http_headers.to_tuples()}
    status, stated = record.http_headers.status_code, http.get("content-type", "")
    kind = headers.get("warc-identified-payload-type") or _media_type(stated)
    if status is None:
        return Broken(page.source, page.bytes, "HTTP headers", "no status line")
    if not 200 <= status < 300:
        return Broken(page.source, page.bytes, "HTTP status", str(status))
    if not (kind.lower() in HTML_TYPES if kind else _MARKUP.match(body)):
        return Broken(page.source, page.bytes, "content type", kind or "none stated")
    if len(body) > limit:
        return Broken(page.source, page.bytes, "too long", f"more than {limit} bytes when decompressed")
    page.html = decode(body, _charset(stated), markup=True)[0].encode()
    return page


def _media_type(stated: str) -> str:
    found = _TYPE.match(stated)
    return found[1].lower() if found else ""


def _charset(stated: str) -> str | None:
    found = _CHARSET.search(stated)
    return found and found[1]
