"""`megagpt embed`: files of vectors, by an embedder without a model; work that goes on, and jobs that are refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from megagpt.errors import CheckpointError, ConfigError, DataError
from megagpt.evaluate import vectors
from tests.embedders import WordEmbedder

TEXTS = ["the cat", 'a "dog"', "the cat", "Ünïcödé 日本語 😀\u2028x", "<b>tag</b>\nnew line", "end"]


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_TEXTS", 2)


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "docs.jsonl", [{"text": text, "id": f"d{n}"} for n, text in enumerate(TEXTS)])


@pytest.fixture
def embed(megagpt, embedder, checkpoint):
    return lambda *words: megagpt("embed", "--checkpoint", checkpoint, *words)


def expected(texts: list[str] = TEXTS, dimensions: int | None = None) -> np.ndarray:
    return WordEmbedder().embed(texts, "document", dimensions)


@pytest.mark.parametrize("name", ["v.npy", "v.parquet", "v.jsonl"])
@pytest.mark.parametrize("dimensions", [None, 8])
def test_every_format_holds_the_same_vectors(embed, documents, tmp_path, small_blocks, name, dimensions):
    output = tmp_path / "made" / name
    extra = [] if dimensions is None else ["--dimensions", dimensions]
    text = [] if name.endswith(".npy") else ["--with-text"]
    embed(documents, "--output", output, *extra, *text)
    if name.endswith(".npy"):
        found = np.load(output, mmap_mode="r")
        assert found.dtype == np.float32
    elif name.endswith(".parquet"):
        table = pq.read_table(output).to_pydict()
        found, ids, texts = np.array(table["vector"], np.float32), table["id"], table["text"]
    else:
        records = [json.loads(line) for line in output.read_bytes().decode().split("\n")[:-1]]
        found = np.array([record["vector"] for record in records], np.float32)
        ids, texts = [record["id"] for record in records], [record["text"] for record in records]
    np.testing.assert_array_equal(found, expected(dimensions=dimensions))
    if text:
        assert ids == [f"d{n}" for n in range(len(TEXTS))]
        assert texts == TEXTS
    about = json.loads(output.with_name(f"{name}.meta.json").read_text())
    assert (about["count"], about["dimensions"]) == (len(TEXTS), dimensions or 32)
    assert about["job"]["side"] == "document" and about["job"]["inputs"][0]["path"] == str(documents)
    assert sorted(path.name for path in output.parent.iterdir()) == [name, f"{name}.meta.json"]


def test_text_has_one_text_a_line_and_files_join(embed, embedder, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one cat\r\nzwei Katzen\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"trois chats"))
    output = tmp_path / "v.jsonl"
    embed(tmp_path / "a.txt", tmp_path / "b.txt.gz", "--output", output, "--side", "query", "--with-text")
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(one["id"], one["text"]) for one in records] == [
        ("0", "one cat"),
        ("1", "zwei Katzen"),
        ("2", "trois chats"),
    ]
    assert embedder.calls == [(3, "query")]


def test_another_key(embed, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "a cat", "text": 5}])
    embed(path, "--key", "body", "--output", tmp_path / "v.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected(["a cat"]))


def test_interrupted_work_goes_on(embed, embedder, documents, tmp_path, small_blocks, monkeypatch):
    output = tmp_path / "v.npy"
    whole = embedder.vectors

    def fails_at_third(texts, *rest, **more):
        if len(embedder.calls) == 2:
            raise KeyboardInterrupt
        return whole(texts, *rest, **more)

    monkeypatch.setattr(embedder, "vectors", fails_at_third)
    with pytest.raises(Exception, match="the same command goes on"):
        embed(documents, "--output", output)
    assert not output.exists()
    (tmp_path / "v.npy.parts" / "000001.npy").write_bytes(b"half of a bl")  # as a full disk may leave it
    monkeypatch.setattr(embedder, "vectors", whole)
    embedder.calls.clear()
    embed(documents, "--output", output)
    assert embedder.calls == [(2, "document"), (2, "document")]  # the damaged block, and the last
    np.testing.assert_array_equal(np.load(output), expected())
    embed(documents, "--output", output)
    assert len(embedder.calls) == 2  # nothing is left to do


@pytest.mark.parametrize("finished", [True, False])
def test_another_job_is_refused_by_name(
    embed, embedder, documents, checkpoint, tmp_path, monkeypatch, small_blocks, finished
):
    output = tmp_path / "v.npy"
    whole = embedder.vectors
    if not finished:
        fails = iter([whole(TEXTS[:2], "document")])
        monkeypatch.setattr(embedder, "vectors", lambda *_, **__: next(fails))
        with pytest.raises(StopIteration):
            embed(documents, "--output", output)
        monkeypatch.setattr(embedder, "vectors", whole)
    else:
        embed(documents, "--output", output)
    before = documents.read_bytes()
    for change, message in [
        (lambda: documents.write_bytes(before + b'{"text": "more"}\n'), "docs.jsonl has changed"),
        (lambda: (checkpoint / "manifest.json").write_text("another"), f"the checkpoint {checkpoint} has changed"),
    ]:
        change()
        with pytest.raises(ConfigError, match=message):
            embed(documents, "--output", output)
        documents.write_bytes(before)
    (checkpoint / "manifest.json").write_text("{}")
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "x"}])
    for words, message in [
        (["--side", "query"], "side is query, not document"),
        (["--dimensions", 8], "dimensions is 8, not the model's"),
        (["--key", "id"], "key is id, not text"),
        ([other], r"the input is .*docs.jsonl, .*other.jsonl, not .*docs.jsonl"),
    ]:
        with pytest.raises(ConfigError, match=message):
            embed(documents, "--output", output, *words)
    embed(documents, "--output", output)  # as it was: nothing was lost
    np.testing.assert_array_equal(np.load(output), expected())


@pytest.mark.parametrize("before", [[], ["--with-text"]])
def test_a_file_with_texts_is_no_file_without(embed, documents, tmp_path, before):
    output = tmp_path / "v.jsonl"
    embed(documents, "--output", output, *before)
    made = output.read_bytes()
    other = [] if before else ["--with-text"]
    with pytest.raises(ConfigError, match=f"with_text is {not before}, not {bool(before)}"):
        embed(documents, "--output", output, *other)
    embed(documents, "--output", output, *before)
    assert output.read_bytes() == made


def test_a_moved_input_is_the_same(embed, embedder, documents, tmp_path):
    embed(documents, "--output", tmp_path / "v.npy")
    moved = documents.rename(tmp_path / "moved.jsonl")
    embed(moved, "--output", tmp_path / "v.npy")
    assert len(embedder.calls) == 1


def test_a_file_that_is_not_ours_stays(embed, documents, tmp_path):
    output = tmp_path / "v.npy"
    output.write_text("precious")
    with pytest.raises(ConfigError, match=r"v.npy exists without v.npy.meta.json, which describes it"):
        embed(documents, "--output", output)
    assert output.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": " "}\n', r"bad.jsonl:2: empty"),
        ('{"text": "a"}\n{"body": "b"}\n', r"bad.jsonl:2: missing key \(text\)"),
        ('{"text": "a"}\n\n{"text": "b"}\n', r"bad.jsonl:2: empty"),
        ('{"text": "a"}\n{"text": "b', r"bad.jsonl:2: invalid JSON"),
        ("", r"bad.jsonl:1: empty"),
    ],
)
def test_a_bad_record_is_named_before_the_model_is_loaded(embed, embedder, tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        embed(path, "--output", tmp_path / "v.npy")
    assert not embedder.calls and sorted(tmp_path.glob("v*")) == []


def test_an_empty_line_of_text_is_named(embed, tmp_path):
    (tmp_path / "bad.txt").write_text("one\n\nthree\n")
    with pytest.raises(DataError, match=r"bad.txt:2: empty.*its number finds its vector"):
        embed(tmp_path / "bad.txt", "--output", tmp_path / "v.npy")


def test_what_cannot_be_made_is_refused(embed, embedder, documents, checkpoint, tmp_path, monkeypatch):
    for words, kind, message in [
        ([documents, "--output", tmp_path / "v.csv"], ConfigError, "must end in .npy, .parquet or .jsonl"),
        ([documents, "--output", tmp_path / "v.npy", "--with-text"], ConfigError, "holds only numbers"),
        (
            [documents, "--output", tmp_path / "v.npy", "--dimensions", 64],
            ConfigError,
            "64, but the model of .* has 32",
        ),
        ([tmp_path / "none.jsonl", "--output", tmp_path / "v.npy"], DataError, "none.jsonl: no such file"),
        ([documents, "--output", tmp_path / "w.npy", "--tensor-parallel-size", 2], ConfigError, "tensor"),
    ]:
        with pytest.raises(kind, match=message):
            embed(*words)
    monkeypatch.setattr(embedder, "vectors", lambda texts, *_, **__: (np.full((len(texts), 32), np.nan, np.float32), 0))
    with pytest.raises(CheckpointError, match="not finite"):
        embed(documents, "--output", tmp_path / "nan.npy")
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        embed(documents, "--output", tmp_path / "x.npy")


def test_two_processes_do_not_write_one_file(embed, documents, tmp_path):
    from megagpt.data.files import locked

    with locked(tmp_path / "v.npy.parts"), pytest.raises(DataError, match="another process"):
        embed(documents, "--output", tmp_path / "v.npy")


def test_work_that_began_with_nothing_binds_to_nothing(embed, embedder, documents, tmp_path, monkeypatch):
    whole = embedder.vectors
    monkeypatch.setattr(embedder, "vectors", lambda texts, *_: (np.zeros((len(texts), 32), np.float32), 0))
    with pytest.raises(CheckpointError, match="not finite"), np.errstate(invalid="ignore"):
        embed(documents, "--output", tmp_path / "v.npy")
    monkeypatch.setattr(embedder, "vectors", whole)
    embed(documents, "--output", tmp_path / "v.npy", "--side", "query")


def test_texts_that_are_cut_short_are_counted_once(embed, embedder, tmp_path, small_blocks, caplog, monkeypatch):
    texts = ["short", "one two three four five six seven", "a", "b", "seven words are too many for it"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    whole = embedder.vectors
    answers = iter([whole(texts[:2], "document")])
    monkeypatch.setattr(embedder, "vectors", lambda *_, **__: next(answers))
    with pytest.raises(StopIteration):
        embed(path, "--output", tmp_path / "v.npy")
    monkeypatch.setattr(embedder, "vectors", whole)
    embed(path, "--output", tmp_path / "v.npy")
    assert json.loads((tmp_path / "v.npy.meta.json").read_text())["truncated"] == 2
    assert [one.message for one in caplog.records if "lose their ends" in one.message] == [
        "2 of 5 texts are too long for the model and lose their ends"
    ]
