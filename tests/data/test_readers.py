"""Reading: every format gives the same texts, every malformed record is named, memory does not follow the input."""

import gzip
import json
import os
import tracemalloc
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data import readers
from megagpt.data.readers import Position, Rejection, chunks, documents, find_sources
from megagpt.errors import DataError

LIMIT = 1000
TEXTS = ["first", 'quoted "text"\nof two lines', "naïve 中文 🎉", "x" * 900, " spaces kept "]


def read(inputs, start=Position(), limit=LIMIT, key="text"):  # noqa: B008
    """All texts and rejections, in order."""
    found = chunks(find_sources(inputs), key, limit, start)
    return [text for chunk in found for item in chunk.items for text in documents(item, key, limit)]


def lines(texts) -> bytes:
    return b"".join(json.dumps({"id": n, "text": text}).encode() + b"\n" for n, text in enumerate(texts))


def compress(content: bytes, suffix: str) -> bytes:
    if suffix == ".zst":
        return pytest.importorskip("zstandard").ZstdCompressor().compress(content)
    return gzip.compress(content) if suffix == ".gz" else content


def write_parquet(path, columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=2)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson", "a.json.gz"])
def test_json_lines(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(compress(lines(TEXTS), path.suffix))
    assert read([path]) == TEXTS


def test_fields_that_nobody_reads_are_counted(tmp_path):
    """Those of records whose text is read, by name."""
    records = [{"text": "a", "url": 1, "id": 2}, {"text": "b", "id": 3}, {"text": 5, "lost": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_parquet(tmp_path / "b.parquet", {"text": ["c", None, "d"], "id": [1, 2, 3]})
    unread = Counter()
    found = chunks(find_sources([tmp_path / "a.jsonl", tmp_path / "b.parquet"]), "text", LIMIT, Position())
    texts = [text for chunk in found for item in chunk.items for text in documents(item, "text", LIMIT, unread)]
    assert [text for text in texts if isinstance(text, str)] == ["a", "b", "c", "d"]
    assert unread == {"url": 1, "id": 4}


def test_a_text_that_a_record_has_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a \\"text\\" in it"}\n{"text": "a", "text": "b"}\n{"in": {"text": 1}, "text": "c"}\n'
    )
    first, second, third = read([tmp_path / "a.jsonl"])
    assert (first, third) == ('a "text" in it', "c")
    assert str(second) == f"{tmp_path}/a.jsonl:2: key twice (text)"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_compressed_files_in_one(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(lines(TEXTS[:2]), suffix) + compress(lines(TEXTS[2:]), suffix))
    assert read([path]) == TEXTS


def test_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "ROWS", 2)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1)
    path = tmp_path / "a.parquet"
    write_parquet(path, {"text": [*TEXTS, None, "a\0b", ""], "id": list(range(len(TEXTS) + 3))})
    rows = len(TEXTS)
    expected = [*TEXTS, (rows + 1, "wrong type"), (rows + 2, "NUL"), (rows + 3, "empty")]
    assert [item if isinstance(item, str) else item[1:3] for item in read([path])] == expected
    for chunk in chunks(find_sources([path]), "text", LIMIT, Position()):  # reading can go on after each chunk
        rest = read([path], chunk.end)
        assert [item if isinstance(item, str) else item[1:3] for item in rest] == expected[len(expected) - len(rest) :]


@pytest.mark.parametrize(("column", "message"), [({"body": ["a"]}, "no column 'text'.*body"), ({"text": [1]}, "int64")])
def test_parquet_without_the_text_is_refused(tmp_path, column, message):
    write_parquet(tmp_path / "a.parquet", column)
    with pytest.raises(DataError, match=message):
        read([tmp_path / "a.parquet"])


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_text_file_is_one_document(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(TEXTS[1].encode(), suffix))
    assert read([path]) == [TEXTS[1]]


def test_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(TEXTS))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read([tmp_path]) == [*TEXTS, "hello"]


def test_folders_globs_and_patterns(tmp_path):
    for name in ("b/two.py", "b/one.txt", "a/three.py", "a/.hidden.txt", "z.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)

    def names(*args):
        return [source.path.removeprefix(f"{tmp_path}/") for source in find_sources(*args)]

    assert names([tmp_path]) == ["a/.hidden.txt", "b/one.txt"]
    assert names([tmp_path], ["*.py", "*.md"]) == ["a/three.py", "b/two.py", "z.md"]
    assert names([tmp_path / "z.md", f"{tmp_path}/**/*.py", tmp_path / "b/two.py"]) == [
        "z.md",
        "a/three.py",
        "b/two.py",
    ]
    for item, message in [("none", "no such file"), ("*.rs", "no such file"), ("b", r"matches \*\.rs")]:
        with pytest.raises(DataError, match=message):
            find_sources([tmp_path / item], ["*.rs"])


MALFORMED = [
    (b'{"text": "cut', "invalid JSON"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"text": "a\0b"}', "NUL"),
    (rb'{"text": "a\u0000b"}', "NUL"),
    (rb'{"text": "half \ud800"}', "invalid UTF-8"),
    (b'{"body": "a"}', "missing key"),
    (b'{"text": 5}', "wrong type"),
    (b'{"text": null}', "wrong type"),
    (b'["text"]', "wrong type"),
    (b"5", "wrong type"),
    (b'{"text": ' + b"[" * 900, "invalid JSON"),
    (b'{"text": ' + b"9" * 900, "invalid JSON"),
    (b'{"text": ""}', "empty"),
    (b'{"text": " \\n "}', "empty"),
    (b"", "empty"),
    (b'{"text": "' + b"x" * LIMIT + b'"}', "too long"),
]


@pytest.mark.parametrize(("record", "kind"), MALFORMED)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_malformed_record_is_named(tmp_path, record, kind, end):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(TEXTS[:2]) + record + end + lines(TEXTS[2:]))
    result = read([path])
    assert [item for item in result if isinstance(item, str)] == TEXTS
    assert isinstance(result[2], Rejection)
    assert result[2][:3] == (str(path), 3, kind)
    assert str(result[2]).startswith(f"{path}:3: {kind}")


def test_deep_nesting_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
    assert [item[1:3] for item in read([path], limit=10**6)] == [(1, "invalid JSON")]


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff", b"a\0b", b"x" * (LIMIT + 1)])
def test_malformed_text_file_is_named(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    kinds = {b"": "empty", b"\n": "empty", b"\xff": "invalid UTF-8", b"a\0b": "NUL"}
    assert [item[1:3] for item in read([tmp_path])] == [(1, kinds.get(content, "too long"))]


def test_empty_files_are_named(tmp_path):
    names = ["a.jsonl", "b.jsonl.gz", "c.txt"]
    for name in names:
        (tmp_path / name).write_bytes(compress(b"", (tmp_path / name).suffix))
    assert [item[:3] for item in read([tmp_path])] == [(str(tmp_path / name), 1, "empty") for name in names]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9, -1])
def test_truncated_file_gives_what_it_has_and_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"a.jsonl{suffix}"
    texts = [f"{n} {n * n} {hash(str(n))}" for n in range(20_000)]
    whole = compress(lines(texts), suffix)
    path.write_bytes(whole[: int(len(whole) * keep) if keep >= 0 else -1])
    *good, last = read([path])
    assert good == texts[: len(good)]
    assert last[:3] == (str(path), len(good) + 1, "damaged file")
    assert len(good) >= (keep - 0.45) * len(texts)  # a compressor holds back at most a block


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.gz"])
def test_what_is_not_of_its_format_is_named(tmp_path, name):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(b"certainly neither compressed nor columnar")
    assert [item[1:3] for item in read([tmp_path])] == [(1, "damaged file")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt.gz", "a.parquet"])
@pytest.mark.parametrize("given", ["file", "folder", "glob"])
def test_pipes_devices_and_links_to_nothing_are_named(tmp_path, name, given):
    """A pipe would be waited for until somebody writes into it, /dev/zero be read for ever."""
    path = tmp_path / name
    item = {"file": path, "folder": tmp_path, "glob": f"{tmp_path}/a.*"}[given]
    for make, message in (
        (os.mkfifo, r"a named pipe \(FIFO\), not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
        (lambda path: path.symlink_to("/nowhere"), "a link to /nowhere, where nothing is"),
    ):
        make(path)
        with pytest.raises(DataError, match=f"cannot read {path}: {message}"):
            find_sources([item])
        path.unlink()
    path.write_text("{}")
    sources = find_sources([item])
    path.unlink()
    os.mkfifo(path)  # since it was looked for
    with pytest.raises(DataError, match=f"cannot read {path}: a named pipe"):
        list(chunks(sources, "text", 1000, Position()))


def test_unreadable_file_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS))
    sources = find_sources([tmp_path / "a.jsonl"])
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl"):
        list(chunks(sources, "text", LIMIT, Position()))


@given(
    content=st.lists(st.sampled_from([b'{"text": "a"}', b"", b"x" * 30, b"\xe4", b'{"text": "b"}']), max_size=12),
    newline_at_end=st.booleans(),
    read_bytes=st.integers(1, 40),
    suffix=st.sampled_from(["", ".gz"]),
)
@settings(max_examples=150, deadline=None)
def test_result_does_not_depend_on_how_it_is_read(tmp_path_factory, content, newline_at_end, read_bytes, suffix):
    path = tmp_path_factory.mktemp("read") / f"a.jsonl{suffix}"
    path.write_bytes(compress(b"\n".join(content) + (b"\n" if newline_at_end else b""), suffix))
    expected = read([path], limit=20)
    assert len(expected) == max(1, len(content) - (not newline_at_end and content[-1:] == [b""]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "READ_BYTES", read_bytes)
        patch.setattr(readers, "CHUNK_BYTES", 2 * read_bytes)
        assert read([path], limit=20) == expected
        for chunk in chunks(find_sources([path]), "text", 20, Position()):
            rest = read([path], chunk.end, limit=20)
            assert rest == expected[len(expected) - len(rest) :]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_memory_does_not_follow_a_long_line(tmp_path, suffix):
    size, limit = 200_000_000, 1_000_000
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b'{"text": "' + b"x" * size + b'"}\n{"text": "after"}\n', suffix))
    tracemalloc.start()
    result = read([path], limit=limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [result[0][1:3], *result[1:]] == [(1, "too long"), "after"]
    assert peak < size / 2


def test_real_text(data_dir):
    folder = data_dir / "wiki_c4_demo"
    texts = list(islice(read([folder], limit=10**7), 1000))
    assert all(isinstance(text, str) for text in texts)
    raw = [line for path in sorted(folder.glob("*.gz")) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert texts == [json.loads(line)["text"] for line in raw]
