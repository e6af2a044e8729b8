"""Lines of JSON and rows of parquet: texts, what is stated beside them, and every malformed record by its number."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megagpt.data.corpus.text.inputs.records import read_jsonl, read_parquet
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.errors import DataError

LIMIT = 1_000_000


def jsonl(path: Path, content: bytes, key: str = "text", limit: int = LIMIT) -> list[Page | Broken]:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return list(read_jsonl(str(path), path.stat().st_size, path.name, key, limit))


def parquet(path: Path, table: pa.Table, key: str = "text", limit: int = LIMIT) -> list[Page | Broken]:
    pq.write_table(table, path)
    return list(read_parquet(str(path), path.name, key, limit))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_lines_with_what_is_stated_beside_the_text(tmp_path, name):
    records = [
        {"content": "one", "url": "http://a.example/", "title": "T", "date": "2024", "author": "A", "language": "en"},
        {"content": "zwei ü", "url": None, "title": 5, "date": ["x"], "other": "not kept"},
    ]
    lines = [json.dumps(record).encode() for record in records]
    one, two = jsonl(tmp_path / name, b"\n".join(lines), key="content")
    about = {"title": "T", "date": "2024", "author": "A", "language": "en"}
    assert one == Page("one", f"{name}#1", len(lines[0]), "http://a.example/", about)
    assert two == Page("zwei ü", f"{name}#2", len(lines[1]), unread=("title", "date", "other"))


def test_every_malformed_line_is_broken_with_its_number(tmp_path):
    lines = [b'{"text": "a"}', b"{", b"[1]", b'{"t": "b"}', b'{"text": 5}', b'{"text": " "}', b'{"text": "\xff"}']
    lines += [b'{"text": "' + b"x" * LIMIT + b'"}', b'{"text": "z"}']
    made = jsonl(tmp_path / "a.jsonl", b"\n".join(lines) + b"\n")
    assert [each.source for each in made] == [f"a.jsonl#{number}" for number in range(1, 10)]
    rules = ["invalid JSON", "wrong type", "missing key", "wrong type", "empty", "invalid UTF-8", "too long"]
    assert [each.rule for each in made[1:-1]] == rules
    assert [made[0].text, made[-1].text] == ["a", "z"]


def test_a_line_longer_than_memory_should_be_is_passed(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    content = b'{"text": "a"}\n{"text": "' + b"x" * 50_000_000 + b'"}\n{"text": "b"}\n'
    path.write_bytes(gzip.compress(content, 1))
    del content
    tracemalloc.start()
    made = list(read_jsonl(str(path), path.stat().st_size, "a", "text", LIMIT))
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()
    assert [each.source for each in made] == ["a#1", "a#2", "a#3"]
    assert made[1].rule == "too long" and made[2].text == "b"


def test_a_file_that_is_cut_off_names_what_is_lost(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = b"".join(b'{"text": "document %d"}\n' % number for number in range(1000))
    path.write_bytes(gzip.compress(lines)[:-500])
    made = list(read_jsonl(str(path), 0, "a", "text", LIMIT))
    texts = [each.text for each in made if isinstance(each, Page)]
    assert texts == [f"document {number}" for number in range(len(texts))]
    lost = made[-1]
    assert lost.rule == "damaged file" and "lost" in lost.reason and isinstance(made[-2], Page | Broken)


def test_rows_with_what_is_stated_beside_the_text(tmp_path):
    columns = {
        "text": ["one", None, "", "drei"],
        "url": ["http://a.example/", "x", "y", None],
        "date": [1, 2, 3, 4],
        "title": ["T", "U", "V", "W"],
        "other": ["a", "b", "c", "d"],
    }
    one, null, empty, last = parquet(tmp_path / "a.parquet", pa.table(columns))
    assert one == Page("one", "a.parquet#1", 3, "http://a.example/", {"title": "T"}, unread=("date", "other"))
    assert null == Broken("a.parquet#2", 0, "wrong type", "null, not a string")
    assert empty.text == ""  # what is empty is said for all formats at once
    assert last == Page("drei", "a.parquet#4", 4, None, {"title": "W"}, unread=("date", "other"))


def test_rows_that_are_too_long_or_no_utf8(tmp_path):
    raw = pa.array([b"fine", b"bad \xff", b"x" * 2000], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})
    made = parquet(tmp_path / "a.parquet", table, limit=1000)
    assert [getattr(each, "rule", None) for each in made] == [None, "invalid UTF-8", "too long"]


def test_columns_that_are_not_there_are_the_users_to_put_right(tmp_path):
    with pytest.raises(DataError, match=r"no column 'text' .*among content, n"):
        parquet(tmp_path / "a.parquet", pa.table({"content": ["a"], "n": [1]}))
    with pytest.raises(DataError, match="holds int64, not strings"):
        parquet(tmp_path / "a.parquet", pa.table({"text": [1]}))


def test_a_parquet_file_that_is_damaged_or_none(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {n} " * 50 for n in range(5000)]}), path, row_group_size=1000)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 2000):
        content[place] ^= 0x55
    path.write_bytes(content)
    made = list(read_parquet(str(path), "a", "text", LIMIT))
    assert [each.text for each in made[:1000]] == [f"text {n} " * 50 for n in range(1000)]
    assert made[-1].rule == "damaged file" and "lost" in made[-1].reason
    path.write_bytes(b"PAR1 and nothing else")
    (broken,) = read_parquet(str(path), "a", "text", LIMIT)
    assert broken[:3] == ("a#1", 0, "damaged file")
