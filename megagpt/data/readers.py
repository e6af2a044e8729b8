"""Read documents from files in chunks, and reject malformed records.

`find_sources` lists files, `chunks` reads them one after the other, and `documents` turns chunks into texts. The first
two run in one process, the last in many. Only one chunk is in memory at a time, and the length of records is limited.
"""

import codecs
import glob
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from megagpt.data.files import file_size, open_input
from megagpt.errors import ConfigError, DataError

CHUNK_BYTES = 4 << 20
"""Approximate number of uncompressed bytes in a chunk, which one worker gets."""

READ_BYTES = 1 << 20
"""Approximate number of uncompressed bytes that are read at a time."""

BURST_BYTES = 16 << 20
"""Upper limit of the bytes that one piece of a compressed file can become, even in a hostile file."""

_LARGEST_RATIO = {".gz": 1032, ".zst": 32_768}
"""Largest possible ratio of decompressed to compressed size, by the definitions of the formats."""

MAX_RECORD_BYTES = 32_000_000
"""Length limit of a record, for callers without a limit of their own."""

ROWS = 256
"""Number of rows of a parquet file that are read at a time."""

FOLDER_PATTERNS = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.parquet", "*.txt", "*.txt.gz", "*.txt.zst")
"""Default patterns of the files to read in a folder."""

Format = Literal["jsonl", "parquet", "text", "lines"]
"""One document is a JSON object, a row, a whole file, or a line of text."""


class Source(NamedTuple):
    """One input file."""

    path: str
    bytes: int
    format: Format


class Rejection(NamedTuple):
    """A record that is left out, and the reason."""

    path: str
    line: int
    """Line of the file, or row of a parquet file, from 1."""
    kind: str
    """The reason; equal for all rejections of this kind."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind}{self.detail and f' ({self.detail})'}"


class Block(NamedTuple):
    """Consecutive whole records of one file."""

    path: str
    format: Format
    first_line: int
    records: bytes | list[bytes | None]
    """Lines of JSON or of text, a whole text, or the values of a parquet column."""
    unread: tuple[str, ...] = ()
    """Other columns of the parquet file."""


class Position(NamedTuple):
    """The place where reading continues."""

    source: int = 0
    """Number of the file; all files before it are done."""
    offset: int = 0
    """Number of uncompressed bytes of the file that are done."""
    line: int = 0
    """Number of lines or rows of the file that are done."""


@dataclass
class Chunk:
    """Records that a worker gets at a time."""

    end: Position
    """Where the next chunk begins."""
    items: list[Block | Rejection] = field(default_factory=list)
    """Records, and rejections of records that could not be read, in order."""
    stored_bytes: int = 0
    """Number of bytes read from disk for this chunk; of compressed files, the compressed bytes."""


class _Piece(NamedTuple):
    """A step forward in a file."""

    item: Block | Rejection
    size: int
    offset: int
    line: int
    stored: int
    """Number of bytes of the stored file that are done."""


class _Damaged(Exception):
    """The rest of a file cannot be read."""


def find_sources(inputs: Sequence[str | Path], patterns: Sequence[str] = FOLDER_PATTERNS) -> list[Source]:
    """The files of `inputs` (files, folders, globs): in the order given, sorted within each input.

    A folder gives all files below it whose names match one of `patterns`. A file's format follows from its name:
    .jsonl, .ndjson or .json (one JSON object per line), .parquet, and any other name is text, one document per file.
    All but parquet may also end in .gz or .zst. Raises DataError when an input gives no file, or is a pipe, a device or
    a broken link.
    """
    paths: dict[str, None] = {}  # keeps the order, and a file that is given twice is read once
    for item in map(str, inputs):
        found = [item] if os.path.lexists(item) else sorted(glob.glob(item, recursive=True))  # noqa: PTH207
        if not found:
            raise DataError(f"{item}: no such file or folder")
        files = [file for path in found for file in (_files_below(path, patterns) if Path(path).is_dir() else [path])]
        if not files:
            raise DataError(f"{item}: no file in this folder matches {' or '.join(patterns)}")
        paths |= dict.fromkeys(files)
    return [Source(path, file_size(path), _format_of(path)) for path in paths]


def _files_below(folder: str, patterns: Sequence[str]) -> list[str]:
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return sorted(str(path) for path in files if any(fnmatch(path.name, pattern) for pattern in patterns))


def _format_of(path: str) -> Format:
    name = path.lower().removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "jsonl"
    return "parquet" if name.endswith(".parquet") else "text"


def chunks(sources: Sequence[Source], key: str, limit: int, start: Position) -> Iterator[Chunk]:
    """Read `sources` from `start` on.

    key: the column of parquet files
    limit: length limit of a record in bytes; longer records are rejected without being held in memory
    Raises DataError when a file cannot be read or has no such column, ConfigError when a library is not installed.
    """
    chunk, size = Chunk(start), 0
    for number in range(start.source, len(sources)):
        offset, line = start[1:] if number == start.source else (0, 0)
        stored = 0
        for piece in _read(sources[number], key, limit, offset, line):
            chunk.items.append(piece.item)
            chunk.end = Position(number, piece.offset, piece.line)
            chunk.stored_bytes += piece.stored - stored
            size, stored = size + piece.size, piece.stored
            if size >= CHUNK_BYTES:
                yield chunk
                chunk, size = Chunk(chunk.end), 0
        chunk.end = Position(number + 1)
    if chunk.items:
        yield chunk


def _read(source: Source, key: str, limit: int, offset: int, line: int) -> Iterator[_Piece]:
    """The rest of one file after `offset` and `line`. If it is damaged, the last piece is a rejection."""
    try:
        with open_input(source.path) as raw:
            if source.format == "parquet":
                pieces = _read_parquet(source, raw, key, line)
            else:
                reader = _read_text if source.format == "text" else _read_lines
                pieces = reader(source, raw, _uncompressed(source.path, raw, offset), limit, offset, line)
            try:
                for piece in pieces:
                    offset, line = piece.offset, piece.line
                    yield piece
            except _Damaged as error:
                rejection = Rejection(source.path, line + 1, "damaged file", f"{error}; what follows in it is lost")
                yield _Piece(rejection, 0, offset, line, source.bytes)
    except OSError as error:
        raise DataError(f"cannot read {source.path}: {error.strerror or error}") from error


def _read_lines(
    source: Source, raw: BinaryIO, stream: Iterator[bytes], limit: int, offset: int, line: int
) -> Iterator[_Piece]:
    path, rest, read = source.path, b"", next(stream, b"")
    if not read and offset == 0:
        yield _Piece(Block(path, source.format, 1, b""), 0, 0, 1, 0)
    while read or rest:
        data = rest + read
        cut = data.rfind(b"\n") + 1 if read else len(data)  # the last line may have no newline
        rest = data[cut:]
        if cut:
            block = Block(path, source.format, line + 1, data[:cut])
            offset, line = offset + cut, line + data.count(b"\n", 0, cut) + (data[cut - 1] != ord("\n"))
            yield _Piece(block, cut, offset, line, raw.tell())
        if len(rest) > limit:
            length, rest = _skip_line(stream, len(rest))
            offset, line = offset + length, line + 1
            yield _Piece(_too_long(path, line, limit), 0, offset, line, raw.tell())
        read = next(stream, b"")


def _skip_line(stream: Iterator[bytes], length: int) -> tuple[int, bytes]:
    """Read to the end of a line whose first `length` bytes were read: (its length, bytes read after it)."""
    for data in stream:
        if cut := data.find(b"\n") + 1:
            return length + cut, data[cut:]
        length += len(data)
    return length, b""


def _read_text(
    source: Source, raw: BinaryIO, stream: Iterator[bytes], limit: int, offset: int, line: int
) -> Iterator[_Piece]:
    if line:
        return  # the only record is done
    path, text = source.path, b""
    for data in stream:
        text += data
        if len(text) > limit:
            yield _Piece(_too_long(path, 1, limit), 0, 0, 1, raw.tell())
            return
    yield _Piece(Block(path, "text", 1, text), len(text), len(text), 1, raw.tell())


def _read_parquet(source: Source, raw: BinaryIO, key: str, line: int) -> Iterator[_Piece]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(f'reading {source.path} needs pyarrow: pip install "megagpt[corpora]"') from None
    try:
        file = pq.ParquetFile(raw, buffer_size=READ_BYTES, pre_buffer=False)
        if key not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise DataError(f"{source.path}: there is no column {key!r} (--key) among {names}")
        kind = file.schema_arrow.field(key).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"{source.path}: column {key!r} holds {kind}, not strings")
        done, total = 0, file.metadata.num_rows
        others = tuple(name for name in file.schema_arrow.names if name != key)
        for batch in file.iter_batches(ROWS, columns=[key]):
            done += len(batch)
            if done > line:
                values = batch.column(0).cast(pa.large_binary()).to_pylist()
                size = sum(map(len, filter(None, values)))
                block = Block(source.path, "parquet", done - len(values) + 1, values, others)
                yield _Piece(block, size, 0, done, source.bytes * done // total)
    except (pa.ArrowException, OSError) as error:
        raise _Damaged(str(error)) from None


def _too_long(path: str, line: int, limit: int) -> Rejection:
    return Rejection(path, line, "too long", f"more than {limit} bytes")


def _uncompressed(path: str, raw: BinaryIO, offset: int) -> Iterator[bytes]:
    """The uncompressed bytes of a file from `offset` on, in pieces. Raises _Damaged after the last readable piece."""
    if path.endswith(".gz"):
        return _gathered(_decompressed(raw, ".gz", lambda: zlib.decompressobj(wbits=31), zlib.error), offset)
    if path.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise ConfigError(f'reading {path} needs zstandard: pip install "megagpt[corpora]"') from None
        engine = zstandard.ZstdDecompressor().decompressobj
        return _gathered(_decompressed(raw, ".zst", engine, zstandard.ZstdError), offset)
    raw.seek(offset)
    return iter(lambda: raw.read(READ_BYTES), b"")


def _decompressed(raw: BinaryIO, suffix: str, engine: Callable[[], Any], error: type[Exception]) -> Iterator[bytes]:
    """Small pieces of a gzip or zstd file, which may consist of several concatenated files."""
    member = engine()
    try:
        while data := raw.read(BURST_BYTES // _LARGEST_RATIO[suffix]):
            while data := data.lstrip(b"\0") if member.eof else data:  # padding may follow the end
                member = engine() if member.eof else member
                yield member.decompress(data)
                data = member.unused_data
    except error as reason:
        raise _Damaged(f"cannot be decompressed: {reason}") from None
    if not member.eof:
        raise _Damaged("the compressed data ends too early")


def _gathered(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """The bytes of `pieces` after the first `skip`, in pieces of about READ_BYTES."""
    held, size, damage = [], 0, None
    try:
        for piece in pieces:
            if skip:
                skip, piece = max(0, skip - len(piece)), piece[skip:]
            held.append(piece)
            size += len(piece)
            if size >= READ_BYTES:
                yield b"".join(held)
                held, size = [], 0
    except _Damaged as error:
        damage = error
    if size:
        yield b"".join(held)
    if damage:
        raise damage


def documents(
    item: Block | Rejection, key: str, limit: int, unread: Counter[str] | None = None
) -> Iterator[str | Rejection]:
    """The texts of the records of `item`, and a rejection in place of each malformed record.

    unread: receives, for each field other than `key`, the number of records that have it
    """
    if isinstance(item, Rejection):
        yield item
        return
    for line, record in enumerate(raw_records(item), item.first_line):
        if line == 1 and record:
            record = record.removeprefix(codecs.BOM_UTF8)
        try:
            yield _text_of(record, key if item.format == "jsonl" else None, limit, unread)
            if unread is not None:
                unread.update(item.unread)
        except _Malformed as error:
            yield Rejection(item.path, line, *error.args)


class _Malformed(Exception):
    """A record is malformed; the arguments are (kind, detail) of its rejection."""


def raw_records(block: Block) -> Iterable[bytes | None]:
    """The records of a block as they are stored; None for a null of a parquet column."""
    if block.format in ("jsonl", "lines"):
        return block.records.removesuffix(b"\n").split(b"\n")
    return block.records if block.format == "parquet" else [block.records]


def _text_of(record: bytes | None, key: str | None, limit: int, unread: Counter[str] | None) -> str:
    """The text of a record: all of it or, with a `key`, that field of the JSON object. Raises _Malformed."""
    if record is None:
        raise _Malformed("wrong type", "null, not a string")
    if len(record) > limit:
        raise _Malformed("too long", f"more than {limit} bytes")
    if b"\0" in record:
        raise _Malformed("NUL", f"at byte {record.index(0)}")
    try:
        text = record.decode()
    except UnicodeDecodeError as error:
        raise _Malformed("invalid UTF-8", f"at byte {error.start}") from None
    if key is not None and text.strip():
        text = _value_of(text, key, unread)
    if not text.strip():
        raise _Malformed("empty", "")
    return text


def _value_of(line: str, key: str, unread: Counter[str] | None) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Malformed("invalid JSON", str(error)) from None
    if not isinstance(record, dict):
        raise _Malformed("wrong type", f"{type(record).__name__}, not an object")
    if key not in record:
        raise _Malformed("missing key", key)
    if line.count(f'"{key}"') > 1 and _is_repeated(line, key):
        raise _Malformed("key twice", key)
    text = record[key]
    if not isinstance(text, str):
        raise _Malformed("wrong type", f"{key} is {type(text).__name__}, not a string")
    if "\0" in text:
        raise _Malformed("NUL", f"at character {text.index(chr(0))} of {key}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Malformed("invalid UTF-8", f"half a surrogate pair at character {error.start} of {key}") from None
    if unread is not None:
        unread.update(name for name in record if name != key)
    return text


def _is_repeated(line: str, key: str) -> bool:
    """Whether the object of a line has a key twice; Python's JSON reader would silently keep the last value."""
    pairs = json.loads(line, object_pairs_hook=list)
    return sum(name == key for name, _ in pairs) > 1
