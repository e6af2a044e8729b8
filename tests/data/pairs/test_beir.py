"""BEIR folders, and hard negatives by BM25."""

import json
from pathlib import Path

import pytest

from megagpt.data.pair_sources.beir import Collection, is_folder
from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.generated import Rejections
from megagpt.data.pair_sources.hard_negatives import Mining, with_hard_negatives
from megagpt.data.pair_sources.make import Numbers
from megagpt.errors import ConfigError, DataError

CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "They sleep."},
    {"_id": "d2", "title": "", "text": "Dogs bark."},
    {"_id": "d3", "title": "Fish", "sentences": ["They swim.", "They eat."]},
]
QUERIES = [{"_id": "q1", "text": "Who sleeps?"}, {"_id": "q2", "text": "Who swims?"}]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, records in (("corpus", CORPUS), ("queries", QUERIES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "qrels").mkdir()
    header = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels" / "train.tsv").write_text(f"{header}q1\td1\t1\nq1\td2\t0\nq1\tgone\t1\nq2\td2\t0\n")
    (tmp_path / "qrels" / "test.tsv").write_text(f"{header}q2\td3\t2\n")
    return tmp_path


def load(folder: Path, max_rejected: int = 0) -> Collection:
    return Collection.load(folder, Rejections(max_rejected, Tally()))


def test_queries_meet_their_documents(folder):
    assert is_folder(folder)
    collection, tally = load(folder), Tally()
    assert collection.splits(None) == ["train"]
    assert list(collection.pairs(["train"], None, tally)) == [
        FoundPair("Who sleeps?", "Cats They sleep.", ("Dogs bark.",), f"{folder}/d1")
    ]
    assert tally.dropped == {"judgement of a missing document": 1, "query without relevant document": 1}
    (pair,) = collection.pairs(collection.splits(["test"]), None, Tally())
    assert pair.positive == "Fish They swim. They eat."
    assert set(collection.relevant()) == {
        ("Who sleeps?", "Cats They sleep."),
        ("Who swims?", "Fish They swim. They eat."),
    }


def test_splits_that_are_not_there_are_named(folder):
    with pytest.raises(DataError, match=r"no judgements of --qrels dev; there are test, train"):
        load(folder).splits(["dev"])


def test_a_column_may_name_the_split(folder):
    for path in folder.glob("qrels/*"):
        path.unlink()
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\tsplit\nq1\td1\t1\ttrain\nq2\td3\t1\tdev\n")
    assert load(folder).judgements == {"train": [("q1", "d1", 1)], "dev": [("q2", "d3", 1)]}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("corpus.jsonl", '{"title": "x"}', r"corpus.jsonl:4: no _id"),
        ("corpus.jsonl", '{"_id": "d9", "title": "", "text": " "}', r"corpus.jsonl:4: no text"),
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}', r"corpus.jsonl:4: the id 'd1' is there twice"),
        ("queries.jsonl", "[]", r"queries.jsonl:3: list, not an object"),
        ("qrels/test.tsv", "q1\td1\tyes", r"test.tsv:3: not a judgement"),
    ],
)
def test_mistakes_are_told_with_their_place(folder, name, line, message):
    with (folder / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        load(folder)


def test_missing_files_are_named(folder):
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"no queries.jsonl"):
        load(folder)


def test_hard_negatives_share_words_and_are_not_relevant():
    texts = [f"cat number {number}" for number in range(10)] + ["dogs only"] * 1 + ["a cat that is relevant"]
    pairs = [FoundPair("which cat", "a cat that is relevant"), FoundPair("which cat", "cat number 3")]
    numbers = Numbers(0)
    relevant = {numbers.of("which cat"): {numbers.of(pair.positive) for pair in pairs}}
    tally = Tally()
    first, second = with_hard_negatives(pairs, relevant, texts, Mining(4, 1, 12), numbers, 0, tally)
    for pair in (first, second):
        assert len(set(pair.negatives)) == 4
        assert set(pair.negatives) <= set(texts[:10]) - {"cat number 3"}
    assert first.negatives != second.negatives
    (few, _) = with_hard_negatives(pairs, relevant, texts, Mining(12, 1, 12), numbers, 0, tally)
    assert len(few.negatives) == 9
    assert tally.read["pairs with too few BM25 negatives"] == 2


def test_names_in_code_are_words():
    texts = ["def readHTTPLine(self): ...", "def close_file(self): ..."]
    pair = FoundPair("the next line of HTTP", "def next(self): ...")
    (found,) = with_hard_negatives([pair], {}, texts, Mining(2, 1, 2), Numbers(0), 0, Tally())
    assert found.negatives == tuple(texts[:1])


@pytest.mark.parametrize(("count", "ranks"), [(-1, "1-2"), (1, "0-2"), (1, "5-2"), (1, "top"), (5, "1-3")])
def test_ranks_that_cannot_be_met_are_refused(count, ranks):
    with pytest.raises(ConfigError, match="--bm25-negatives"):
        Mining.parse(count, ranks)
    with pytest.raises(ConfigError, match="only 1 texts to rank"):
        with_hard_negatives([], {}, ["x"], Mining(1, 30, 100), Numbers(0), 0, Tally())
