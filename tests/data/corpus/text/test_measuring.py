"""Clean subsets of evaluations, beside sets of tuples in plain Python."""

import csv
import gzip
import hashlib
import json
import logging
import random

import numpy as np
import pytest

from megagpt.data.corpus.text.decontamination.measuring import read_evaluations, run_length
from megagpt.data.corpus.text.decontamination.records import read_records
from megagpt.errors import ConfigError, DataError

WORDS = [f"{a}{b}" for a in "bcdfgklmnp" for b in ("a", "e", "ile", "onder", "u")]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.lower().replace(",", "").replace("?", "").split()
    return {tuple(words[place : place + n]) for place in range(len(words) - n + 1)}


def lines(path, values):
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return path


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5] * 100, 8),
        ([40] * 100, 13),
        ([9] * 4 + [50] * 96, 13),
        ([9] * 6 + [50] * 94, 9),
        (range(1, 101), 8),
        (range(101, 201), 13),
        ([10, 11] * 50, 10),
        ([12], 12),
    ],
)
def test_run_length_is_the_fifth_percentile_between_8_and_13(lengths, expected):
    assert run_length(list(lengths)) == expected


def test_clean_examples_are_those_of_plain_python(tmp_path):
    rng = random.Random(0)
    short = [
        {"question": f"{sentence(rng, 5)}?", "answers": [sentence(rng, n), "b"]} for n in rng.choices(range(2, 9), k=40)
    ]
    long = [{"text": sentence(rng, rng.randint(20, 40))} for _ in range(30)]
    files = [lines(tmp_path / "short.jsonl", short), lines(tmp_path / "long.jsonl", long)]
    texts = [f"{one['question']} {one['answers'][0]} b" for one in short]
    corpus = [f"{sentence(rng, 30)} {text.upper()}, {sentence(rng, 30)}" for text in texts[::3]]
    corpus += [" ".join(one["text"].split()[3:17]) for one in long[::4]]  # 14 words in a row
    corpus += [" ".join(one["text"].split()[:12]) for one in long]  # 12 are too few

    sets = read_evaluations(files)
    lengths = {one.path.name: one.length for one in sets.sets}
    assert lengths == {"short.jsonl": 8, "long.jsonl": 13}
    found = sets.nothing_found()
    for shard in (corpus[::2], corpus[1::2]):  # shards are joined by a logical or
        mine = sets.nothing_found()
        for text in shard:
            sets.look(text, mine)
        found = [one | other for one, other in zip(found, mine, strict=True)]
    about = sets.write(found, tmp_path / "clean")

    assert json.loads((tmp_path / "clean" / "clean.json").read_text()) == about
    for name, records, shown in (("short.jsonl", short, texts), ("long.jsonl", long, [one["text"] for one in long])):
        n = lengths[name]
        known = set().union(*(runs(text, n) for text in corpus))
        clean = [number for number, text in enumerate(shown, 1) if not runs(text, n) & known]
        one = about["sets"][name]
        written = [json.loads(line) for line in (tmp_path / "clean" / one["clean_file"]).read_text().splitlines()]
        assert written == [{"record": number, "value": records[number - 1]} for number in clean]
        assert 0 < len(clean) < len(records)
        assert one["dirty_records"] == [number for number in range(1, len(records) + 1) if number not in clean]
        assert one["clean_share"] == len(clean) / len(records)
        assert one["short"] == sum(not runs(text, n) for text in shown)
        assert one["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_a_length_may_be_given(tmp_path, caplog):
    path = lines(tmp_path / "anagrams.jsonl", [{"a": "lyinevitab inevitably"}, {"a": "one"}, {"a": "two three"}])
    with caplog.at_level(logging.WARNING):
        sets = read_evaluations([path], {"anagrams.jsonl": 2})
    assert "1 of 3 records have fewer than 2 words" in caplog.text
    found = sets.nothing_found()
    sets.look("It was Two, three", found)
    assert sets.write(found, tmp_path)["sets"]["anagrams.jsonl"]["dirty_records"] == [3]


def test_mistakes_are_told(tmp_path):
    path = lines(tmp_path / "set.jsonl", [{"a": "b"}])
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="different names"):
        read_evaluations([path, lines(tmp_path / "other" / "set.jsonl", [])])
    with pytest.raises(ConfigError, match=r"run length is given for sett.jsonl, but the files are set.jsonl"):
        read_evaluations([path], {"sett.jsonl": 2})
    with pytest.raises(DataError, match="holds no record"):
        read_evaluations([lines(tmp_path / "empty.jsonl", [])])


FORMATS = {
    "a.jsonl": (
        b'{"q": "one", "n": 3, "a": ["two", {"b": "three"}], "c": null}\n\n"four"\n',
        ["one\ntwo\nthree", "four"],
    ),
    "a.json": (b'\xef\xbb\xbf{"version": "1", "data": [{"q": "one"}, {"q": "two"}]}', ["one", "two"]),
    "b.json": (b'[["one", "two"], "three"]', ["one\ntwo", "three"]),
    "c.json": (b'{"q": "one"}\n{"q": "two"}\n', ["one", "two"]),
    "d.json": (b'{"q": "one", "a": "two"}', ["one\ntwo"]),
    "a.csv": (b'q,a\n"one, ""1""\nmore",two\n\n,\nthree,four\n', ["q\na", 'one, "1"\nmore\ntwo', "three\nfour"]),
    "a.tsv": (b'one "quoted\ttwo\nthree\tfour\n', ['one "quoted\ntwo', "three\nfour"]),
    "a.txt": ("one\r\n\n  \nzwei ü\n".encode(), ["one\r", "zwei ü"]),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compressed", [False, True])
def test_formats(tmp_path, name, compressed):
    content, texts = FORMATS[name]
    path = tmp_path / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert [record.text for record in read_records(path)] == texts


def test_a_cell_may_be_a_whole_document(tmp_path):
    """The csv module stops at 131,072 characters unless some module of the process has asked for more."""
    usual = csv.field_size_limit(131_072)
    try:
        (tmp_path / "a.csv").write_text('a,b\n"' + "x" * 140_000 + '",c\n')
        assert [len(record.text) for record in read_records(tmp_path / "a.csv")] == [3, 140_002]
    finally:
        csv.field_size_limit(usual)


def test_numbers_are_those_of_lines_and_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x"}\n\n{"a": "y"}\n')
    assert [record.number for record in read_records(tmp_path / "a.jsonl")] == [1, 3]


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"q": "one", "choices": ["two", "three"], "n": 1}, {"q": "four", "choices": [], "n": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [record.text for record in read_records(tmp_path / "a.parquet")] == ["one\ntwo\nthree", "four"]
    assert [record.value for record in read_records(tmp_path / "a.parquet")] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON"),
        ("a.txt", b"fine\n\xff\xfe\n", r"a\.txt:2: not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 9, mtime=0)[:-9], r"cannot read .*a\.jsonl\.gz"),
        ("a.csv", b'a,b\n"c,d\ne,f\n', r"a\.csv: row 2: unexpected end"),
        ("a.parquet", b"PAR1 no", r"cannot read .*a\.parquet"),
        ("a.doc", b"x", r"a\.doc: evaluation files of this format cannot be read; the formats are \.jsonl"),
        ("a.json", b"[" * 100_000, r"a\.json:1: not JSON"),
    ],
)
def test_a_record_that_cannot_be_read_stops_the_work(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_records(tmp_path / name))
    with pytest.raises(DataError, match="cannot read"):
        list(read_records(tmp_path / "absent.txt"))


def test_real_evaluations_beside_a_corpus_that_has_a_part_of_them(data_dir, tmp_path):
    """Every third question of a real set is planted in real text, reformatted."""
    from megagpt.data.corpus.text.quality.texts import Texts

    path = data_dir / "gsm8k" / "test.jsonl.gz"
    records = list(read_records(path))
    corpus = list(Texts([data_dir / "wiki_c4_demo" / "c4_demo.jsonl.gz"]))
    sets = read_evaluations([path])
    found = sets.nothing_found()
    for text in corpus:
        sets.look(text, found)
    before = np.flatnonzero(~sets.clean(sets.sets[0], found))
    for record in records[::3]:
        sets.look(f"Quiz!\n{record.value['question'].replace(' ', chr(10)).upper()}\nMore.", found)
    dirty = set(np.flatnonzero(~sets.clean(sets.sets[0], found)))
    assert not len(before)
    assert set(range(0, len(records), 3)) <= dirty
    assert len(dirty) < len(records) / 3 + 20  # some questions share their wording
