"""Labelled sets in the shapes in which they are published."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.generated import Rejections, accepted
from megagpt.data.pair_sources.labelled import Wanted, from_labelled
from megagpt.data.pair_sources.records import PATTERNS, read_records
from megagpt.errors import DataError


def read(*paths: Path, max_rejected: int = 0, tally: Tally | None = None, **wanted) -> list[FoundPair]:
    tally = tally or Tally()
    reject = Rejections(max_rejected, tally)
    records = accepted(read_records(paths, patterns=PATTERNS), reject, tally)
    return list(from_labelled(records, Wanted(**wanted), reject, tally))


def texts(pairs: list[FoundPair]) -> list[tuple]:
    return [(pair.query, pair.positive, *pair.negatives) for pair in pairs]


def lines(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"query": "q", "pos": ["a", "b"], "neg": ["n", "m"]}, [("q", "a", "n", "m"), ("q", "b", "n", "m")]),
        ({"anchor": "q", "positive": "a", "negative": "n"}, [("q", "a", "n")]),
        ({"anchor": "q", "positive": "a", "negative_1": "n", "negative_2": "m"}, [("q", "a", "n", "m")]),
        ({"query": "q", "positive": "a", "negatives": ["n"]}, [("q", "a", "n")]),
        ({"query": "q", "positive": "a"}, [("q", "a")]),
        ({"question": "q", "answer": "a"}, [("q", "a")]),
        ({"title": "q", "body": "a"}, [("q", "a")]),
        ({"nl": "q", "code": "a"}, [("q", "a")]),
        ({"instruction": "q", "input": "i", "output": "a"}, [("q\ni", "a")]),
        (["q", "a"], [("q", "a")]),
        (["q", "a", "n"], [("q", "a", "n")]),
        ({"set": ["a", "b", "c"]}, [("a", "b"), ("b", "c")]),
        (
            {"question": "q", "positive_ctxs": [{"title": "t", "text": "a"}], "hard_negative_ctxs": [{"text": "n"}]},
            [("q", "t a", "n")],
        ),
        (
            {"query": "q", "positive_passages": [{"docid": "1", "title": "t", "text": "a"}], "negative_passages": []},
            [("q", "t a")],
        ),
    ],
)
def test_shapes(tmp_path, record, expected):
    pairs = read(lines(tmp_path / "set.jsonl", record))
    assert texts(pairs) == expected
    assert pairs[0].document == f"{tmp_path}/set.jsonl:1"


def test_tables_with_and_without_header_and_arrays_of_json(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"a, b?","yes\nno"\n')
    (tmp_path / "b.tsv").write_text('one "quoted\ttwo\n')
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"one,two,three\n"))
    (tmp_path / "d.json").write_text('[{"query": "q", "pos": ["a"], "neg": []}]')
    assert texts(read(tmp_path / "a.csv")) == [("a, b?", "yes\nno")]
    assert texts(read(tmp_path / "b.tsv")) == [('one "quoted', "two")]
    assert texts(read(tmp_path / "c.csv.gz")) == [("one", "two", "three")]
    assert texts(read(tmp_path / "d.json")) == [("q", "a")]


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"anchor": ["q"], "positive": ["a"], "negative": ["n"]}), tmp_path / "set.parquet")
    assert texts(read(tmp_path / "set.parquet")) == [("q", "a", "n")]


NLI = [
    {"premise": "A man eats.", "hypothesis": "Somebody eats.", "label": 0},
    {"premise": "A dog runs.", "hypothesis": "An animal runs.", "label": 0},
    {"premise": "A man eats.", "hypothesis": "A man eats soup.", "label": 1},
    {"premise": "A man eats.", "hypothesis": "Nobody eats.", "label": 2},
    {"premise": "A man eats.", "hypothesis": "A man sleeps.", "label": 2},
    {"premise": "A cat sits.", "hypothesis": "No cat.", "label": 2},
    {"premise": "A cat sits.", "hypothesis": "A cat is there.", "label": -1},
]
EXPECTED = [("A man eats.", "Somebody eats.", "Nobody eats.", "A man sleeps."), ("A dog runs.", "An animal runs.")]


def test_nli_makes_contradictions_of_the_premise_its_negatives(tmp_path):
    tally = Tally()
    assert texts(read(lines(tmp_path / "nli.jsonl", *NLI), tally=tally)) == EXPECTED
    assert tally.dropped == {
        "record: neutral": 1,
        "record: no majority of annotators": 1,
        "premise without entailment": 1,
    }


def test_nli_with_words_as_snli_has_them(tmp_path):
    names = {0: "entailment", 1: "neutral", 2: "contradiction", -1: "-"}
    snli = [
        {"sentence1": one["premise"], "sentence2": one["hypothesis"], "gold_label": names[one["label"]], "pairID": "x"}
        for one in NLI
    ]
    assert texts(read(lines(tmp_path / "nli.jsonl", *snli))) == EXPECTED
    assert texts(read(tmp_path / "nli.jsonl", max_negatives=1)) == [EXPECTED[0][:3], EXPECTED[1]]


def test_scored_pairs_are_positives_from_a_score_on(tmp_path):
    path = lines(
        tmp_path / "sts.jsonl",
        {"sentence1": "a", "sentence2": "b", "score": 4.5},
        {"sentence1": "c", "sentence2": "d", "score": 4},
        {"sentence1": "e", "sentence2": "f", "score": 3.9},
    )
    assert texts(read(path, min_score=4)) == [("a", "b"), ("c", "d")]
    assert [pair.record() for pair in read(path, scored=True)][2] == {"sentence1": "e", "sentence2": "f", "score": 3.9}
    with pytest.raises(DataError, match=r"sts.jsonl:1: scored pairs: give --min-score"):
        read(path)


def test_files_of_the_sts_benchmark(tmp_path):
    (tmp_path / "sts-dev.csv").write_text(
        'main-captions\tMSRvid\t2012test\t0000\t5.000\tA "hat.\tThe hat.\n'
        "main-news\theadlines\t2013\t0001\t1.2\tOne.\tTwo.\tsource one\tsource two\n"
    )
    (tmp_path / "no_header.csv").write_text('"One, two.",Three.,2.5\n')
    found = [pair.record() for pair in read(tmp_path / "sts-dev.csv", tmp_path / "no_header.csv", scored=True)]
    assert found == [
        {"sentence1": 'A "hat.', "sentence2": "The hat.", "score": 5.0},
        {"sentence1": "One.", "sentence2": "Two.", "score": 1.2},
        {"sentence1": "One, two.", "sentence2": "Three.", "score": 2.5},
    ]


def test_labels_0_and_1_alone_say_too_little(tmp_path):
    path = lines(
        tmp_path / "duplicates.jsonl",
        {"question1": "a", "question2": "b", "is_duplicate": 1},
        {"question1": "c", "question2": "d", "is_duplicate": 0},
    )
    with pytest.raises(DataError, match=r"duplicates.jsonl:1: the only values of is_duplicate are 0 and 1"):
        read(path)
    assert texts(read(path, min_score=1)) == [("a", "b")]


def test_code_search_net_loses_its_docstring(tmp_path):
    code = 'def add(a, b):\n    """Add two numbers.\n\n    :param a: one\n    """\n    return a + b'
    record = {"repo": "me/mine", "path": "a.py", "language": "python", "code": code}
    record |= {"docstring": "Add two numbers.\n\n:param a: one", "url": "http"}
    (pair,) = read(lines(tmp_path / "python_test.jsonl", record))
    assert pair == FoundPair(
        "Add two numbers.", "def add(a, b):\n    return a + b", document="me/mine/a.py", split_key="me/mine"
    )


def test_fields_without_use_are_named_once(tmp_path, caplog):
    record = {"query": "q", "pos": ["a"], "neg": [], "pos_scores": [1.0], "source": "web"}
    with caplog.at_level(logging.WARNING, "megagpt"):
        read(lines(tmp_path / "set.jsonl", record, record))
    (warning,) = [message for message in caplog.messages if "not read" in message]
    assert "pos_scores (2), source (2)" in warning


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"foo": "a", "bar": "b"}], r"set.jsonl:1: not a known shape .*the record has foo, bar"),
        ([{"query": "q", "pos": ["a"]}, {"query": "q", "pos": [" "]}], r"set.jsonl:2: pos, item 1, is empty"),
        ([{"query": "q", "pos": ["a"]}, {"query": "q"}], r"set.jsonl:2: no pos"),
        ([{"query": "q", "pos": []}], r"set.jsonl:1: pos is empty"),
        ([{"query": ["a", "b"], "pos": ["a"]}], r"set.jsonl:1: query holds 2 texts, not one"),
        ([{"query": "q", "pos": [3]}], r"set.jsonl:1: pos, item 1, is int, not a text"),
        ([["a", "b"], {"query": "q", "pos": ["a"]}], r"set.jsonl:2: dict, not a list of two"),
        ([{"premise": "a", "hypothesis": "b", "label": "maybe"}], r"set.jsonl:1: label is 'maybe', not entailment"),
        ([{"premise": "a", "hypothesis": "", "label": 0}], r"set.jsonl:1: hypothesis is empty"),
        (["text"], r"set.jsonl:1: not a known shape"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        read(lines(tmp_path / "set.jsonl", *records))


def test_malformed_records_may_be_tolerated(tmp_path):
    path = lines(tmp_path / "set.jsonl", {"query": "q", "pos": ["a"]}, {"query": "q", "pos": [""]})
    path.write_text(path.read_text() + "{not json\n")
    tally = Tally()
    assert texts(read(path, max_rejected=2, tally=tally)) == [("q", "a")]
    assert tally.dropped.total() == 2
    with pytest.raises(DataError, match=r"2 malformed records.*set.jsonl:3: invalid JSON"):
        read(path, max_rejected=1)


def test_tables_with_rows_of_other_lengths_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\na,b\na,b,c\n")
    with pytest.raises(DataError, match=r"a.csv:3: 3 columns, not 2"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('question,answer\n"a,b\n')
    with pytest.raises(DataError, match=r"b.csv:2: invalid table"):
        read(tmp_path / "b.csv")
