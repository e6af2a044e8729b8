"""`megagpt search`: an index of an embedder without a model, asked in every way, beside brute force."""

import builtins
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from megagpt import cli
from megagpt.errors import CheckpointError, ConfigError, DataError
from tests.embedders import WordEmbedder

TOPICS = {
    "animals": "cat dog horse cow sheep",
    "sea": "boat sail wave harbour tide",
    "food": "bread soup rice salt pan",
}
RECORDS = [
    {"text": f"{a} and {b} <i>{topic[:2]}</i>", "topic": topic, "id": f"{topic}-{a}-{b}"}
    for topic, words in TOPICS.items()
    for a in words.split()
    for b in words.split()
    if a < b
] + [{"text": "cat and dog <i>an</i>", "topic": "animals", "score": 7}, {"text": "日本語 の テキスト 😀\u2028"}]
TEXTS = [record["text"] for record in RECORDS]


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def index(megagpt, embedder, checkpoint, tmp_path) -> Path:
    documents = write_jsonl(tmp_path / "docs.jsonl", RECORDS)
    megagpt("search", "index", documents, "--checkpoint", checkpoint, "--output", tmp_path / "index")
    embedder.calls.clear()
    return tmp_path / "index"


def objects(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.split("\n") if line]


def brute_force(question: str, k: int) -> list[tuple[int, float]]:
    vectors = WordEmbedder().embed(TEXTS, "document").astype(float)
    scores = vectors @ WordEmbedder().embed([question], "query")[0].astype(float)
    return sorted(enumerate(scores.tolist()), key=lambda one: (-round(one[1], 6), one[0]))[:k]


@pytest.mark.parametrize("backend", ["exact", "faiss", "hnsw"])
def test_the_best_documents_by_brute_force(megagpt, embedder, index, backend):
    question = "a dog with a cat"
    printed = megagpt("search", "ask", index, question, "the tide", "--top", 5, "--json", "--backend", backend)
    first, second = objects(printed)
    assert first["question"] == question
    expected = brute_force(question, 5)
    assert [one["number"] for one in first["results"]] == [row for row, _ in expected]
    assert [one["score"] for one in first["results"]] == pytest.approx([score for _, score in expected], abs=2e-6)
    best = first["results"][0]
    assert best["text"] == RECORDS[best["number"]]["text"]
    assert best["record"] == {key: value for key, value in RECORDS[best["number"]].items() if key != "text"}
    assert [one["number"] for one in second["results"]] == [row for row, _ in brute_force("the tide", 5)]
    assert embedder.calls == [(2, "query")]


def test_all_documents_where_more_are_asked_for(megagpt, index):
    (answer,) = objects(megagpt("search", "ask", index, "soup", "--top", 1000, "--json"))
    assert sorted(one["number"] for one in answer["results"]) == list(range(len(RECORDS)))


def test_results_for_people(megagpt, index):
    shown = megagpt("search", "ask", index, "salt soup", "--top", 2)
    assert re.fullmatch(r"salt soup\n( +0\.\d{4}  #\d+  .*\n){2}\n", shown)


def test_a_file_of_questions(megagpt, index, tmp_path, monkeypatch):
    monkeypatch.setattr("megagpt.cli.search.ask.AT_A_TIME", 2)
    questions = ["cat", "日本語", "wave", "soup", "salt"]
    file = write_jsonl(tmp_path / "q.jsonl", [{"q": question} for question in questions])
    output = tmp_path / "out" / "results.jsonl"
    assert megagpt("search", "ask", index, "--file", file, "--key", "q", "--output", output, "--top", 3) == ""
    found = objects(output.read_text())
    assert [one["question"] for one in found] == questions
    assert [one["number"] for one in found[1]["results"]] == [row for row, _ in brute_force("日本語", 3)]
    (tmp_path / "q.txt").write_text("\n".join(questions))
    assert objects(megagpt("search", "ask", index, "--file", tmp_path / "q.txt", "--json", "--top", 3)) == found


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_questions_in_a_terminal_until_the_end(megagpt, index, monkeypatch, end):
    typed = iter(["cat", "  ", "wave"])

    def answer(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise end from None

    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    shown = megagpt("search", "ask", index, "--top", 1)
    assert re.fullmatch(r"cat\n.*\n\nwave\n.*\n\n\n", shown)


def test_questions_that_cannot_be_asked(megagpt, index, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))
    questions = write_jsonl(tmp_path / "q.jsonl", [{"text": "a"}, {"text": ""}])
    for words, kind, message in [
        ([], ConfigError, "there is no question"),
        (["  "], DataError, "a question is empty"),
        (["a", "--file", questions], ConfigError, "give one or the other"),
        (["--output", tmp_path / "o.jsonl"], ConfigError, "--output needs questions"),
        (["--file", questions], DataError, r"q.jsonl:2: empty"),
        (["--file", tmp_path / "none.jsonl"], DataError, "no such file"),
    ]:
        with pytest.raises(kind, match=message):
            megagpt("search", "ask", index, *words)


@pytest.mark.parametrize("backend", ["faiss", "hnsw"])
def test_faiss_is_asked_for_by_name_where_it_is_missing(megagpt, index, monkeypatch, backend):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r'pip install "megagpt\[embeddings\]"'):
        megagpt("search", "ask", index, "cat", "--backend", backend)


def test_another_checkpoint_is_refused(megagpt, index, checkpoint, tmp_path):
    other = tmp_path / "other" / "step_00000020"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text('{"another": 1}')
    with pytest.raises(ConfigError, match=f"was made with {checkpoint}, but {other} is another checkpoint"):
        megagpt("search", "ask", index, "cat", "--checkpoint", other)
    (other / "manifest.json").write_text("{}")  # the same one, moved
    assert megagpt("search", "ask", index, "cat", "--checkpoint", other)
    shutil.rmtree(checkpoint)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        megagpt("search", "ask", index, "cat")


def test_an_index_is_made_once_and_not_over_another(megagpt, embedder, index, checkpoint, tmp_path):
    again = ["search", "index", tmp_path / "docs.jsonl", "--checkpoint", checkpoint, "--output", index]
    megagpt(*again)
    assert not embedder.calls
    with pytest.raises(ConfigError, match="dimensions is 8"):
        megagpt(*again, "--dimensions", 8)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "about.json").unlink(), "an unfinished index: run the"),
        (lambda folder: shutil.rmtree(folder), "is not an index: make one"),
        (lambda folder: (folder / "texts.jsonl").unlink(), "damaged.*texts.jsonl"),
        (lambda folder: (folder / "vectors.npy").unlink(), "damaged.*vectors.npy"),
        (lambda folder: cut(folder / "vectors.npy"), "is damaged"),
        (lambda folder: cut(folder / "texts.jsonl"), "texts.jsonl 31 lines"),
        (lambda folder: cut(folder / "about.json"), "is damaged"),
        (lambda folder: (folder / "about.json").write_text("[]"), "is damaged"),
        (lambda folder: np.save(folder / "vectors.npy", np.zeros((32, 8), np.float32)), r"has \(32, 8\) float32"),
    ],
)
def test_a_damaged_index_is_a_clear_error(megagpt, index, damage, message):
    damage(index)
    with pytest.raises(DataError, match=message):
        megagpt("search", "neighbours", index, "--of", 0)


def test_a_damaged_text_is_named(megagpt, index):
    lines = (index / "texts.jsonl").read_bytes().split(b"\n")
    lines[3] = b'{"text": 3}'
    (index / "texts.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"texts.jsonl:4 is damaged"):
        megagpt("search", "clusters", index, "--count", 2)


def test_neighbours(megagpt, index):
    (answer,) = objects(megagpt("search", "neighbours", index, "--of", 0, "--top", 4, "--json"))
    expected = [row for row, _ in brute_force(TEXTS[0], 5) if row != 0]
    assert answer["text"] == TEXTS[0]
    assert [one["number"] for one in answer["results"]] == expected
    assert megagpt("search", "neighbours", index, "--of", 0, "--top", 1).startswith("cat and")
    for number in (-1, len(RECORDS)):
        with pytest.raises(ConfigError, match=f"no document {number}: the index has 0 to {len(RECORDS) - 1}"):
            megagpt("search", "neighbours", index, f"--of={number}")


def test_duplicates(megagpt, index):
    twin = TEXTS.index("cat and dog <i>an</i>")
    (group,) = objects(megagpt("search", "duplicates", index, "--above", 0.999, "--json"))
    assert group == {"numbers": [twin, len(TEXTS) - 2], "texts": [TEXTS[twin]] * 2}
    shown = megagpt("search", "duplicates", index, "--above", 1)
    assert f"1 groups with 2 of {len(TEXTS)} documents, at a cosine of 1.0 or more" in shown
    assert cli.run(["search", "duplicates", str(index), "--above", "1.5"]) == 2


def test_clusters(megagpt, index):
    found = objects(megagpt("search", "clusters", index, "--count", 4, "--json"))
    assert sorted(row for one in found for row in one["numbers"]) == list(range(len(RECORDS)))
    topics = [{RECORDS[row].get("topic") for row in one["numbers"]} for one in found]
    assert sorted(map(str, topics)) == ["{'animals'}", "{'food'}", "{'sea'}", "{None}"]
    for one, (topic,) in zip(found, topics, strict=True):
        assert topic is None or set(one["words"]) <= {*TOPICS[topic].split(), topic[:2]}
        assert {item["number"] for item in one["central"]} <= set(one["numbers"])
    shown = megagpt("search", "clusters", index, "--count", 4)
    assert shown.count("mean cosine") == 4
    with pytest.raises(ConfigError, match=f"--count is 99, but the index has {len(RECORDS)} documents"):
        megagpt("search", "clusters", index, "--count", 99)


def test_a_map(megagpt, index, tmp_path):
    page = tmp_path / "map.html"
    assert megagpt("search", "map", index, "--output", page, "--clusters", 4).strip() == str(page)
    assert "<i>an" not in page.read_text().partition("<script")[0]  # texts are escaped
    megagpt("search", "map", index, "--output", page, "--color-by", "topic")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    assert data["names"] == ["animals", "sea", "food", "(none)"]
    assert [data["names"][group] for group in data["group"]] == [one.get("topic", "(none)") for one in RECORDS]
    assert data["text"] == TEXTS
    with pytest.raises(ConfigError, match=r"no document has a key 'topics' to colour by; they have id, score, topic"):
        megagpt("search", "map", index, "--output", page, "--color-by", "topics")
