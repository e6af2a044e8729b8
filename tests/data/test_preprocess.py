"""Preprocessing as a user sees it: exact corpora, resumption, honest counting, refusals."""

import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers

from megagpt.data import preprocess as module
from megagpt.data import readers
from megagpt.data.indexed import corpus_files, open_corpus
from megagpt.data.preprocess import preprocess
from megagpt.data.sampling import sample_texts
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import DataError

ROOT = Path(__file__).parent.parent.parent
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "was",
    "for",
    "it",
    "with",
    "as",
    "his",
    "on",
    "be",
    "at",
    "by",
    "I",
]

STALLED = """
import sys, time
from megagpt.data import preprocess, readers

def eight_chunks(*args):
    for number, chunk in enumerate(readers.chunks(*args)):
        if number == 8:
            time.sleep(600)
        yield chunk

readers.READ_BYTES, readers.CHUNK_BYTES, preprocess.chunks = 2000, 5000, eight_chunks
preprocess.preprocess([sys.argv[1]], sys.argv[2], sys.argv[3], workers=2)
"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.randrange(1, 60))) + " naïve 中文" for _ in range(3000)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, texts) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(texts, 400).save(path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory, texts) -> Path:
    path = tmp_path_factory.mktemp("source") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory, source, tokenizer) -> list[bytes]:
    """The three files of an uninterrupted run."""
    prefix = tmp_path_factory.mktemp("clean") / "text"
    preprocess([source], tokenizer, prefix, workers=1)
    return contents(prefix)


def contents(prefix) -> list[bytes]:
    return [path.read_bytes() for path in corpus_files(prefix)]


def small_chunks(patch) -> None:
    patch.setattr(readers, "READ_BYTES", 2000)
    patch.setattr(readers, "CHUNK_BYTES", 5000)


def test_corpus_holds_every_document(tmp_path, source, tokenizer, texts):
    about = preprocess([source], tokenizer, tmp_path / "out" / "text", workers=1)
    dataset, read = open_corpus(tmp_path / "out" / "text")
    encoder = Tokenizer.load(tokenizer)
    expected = [[*encoder.encode(text), encoder.end_of_text_id] for text in texts]
    assert [dataset[index].tolist() for index in range(len(dataset))] == expected
    assert about == read
    assert about == {
        "tokenizer_sha256": encoder.sha256,
        "vocab_size": encoder.vocab_size,
        "key": "text",
        "max_record_mb": module.MAX_RECORD_MB,
        "sources": [{"path": str(source), "bytes": source.stat().st_size}],
        "bytes": sum(len(text.encode()) for text in texts),
        "rejected": {},
        "unread": {},
        "documents": len(texts),
        "tokens": sum(map(len, expected)),
        "max_token": encoder.end_of_text_id,
        "bin_sha256": hashlib.sha256(contents(tmp_path / "out" / "text")[0]).hexdigest(),
        "idx_sha256": hashlib.sha256(contents(tmp_path / "out" / "text")[1]).hexdigest(),
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["text.bin", "text.idx", "text.json"]


def test_workers_and_chunks_do_not_change_a_byte(tmp_path, source, tokenizer, clean, monkeypatch):
    small_chunks(monkeypatch)
    preprocess([source], tokenizer, tmp_path / "text", workers=2)
    assert contents(tmp_path / "text") == clean


@pytest.mark.parametrize("engine", ["gigatoken", "tokenizers"])
def test_both_libraries_give_the_same_bytes(tmp_path, source, tokenizer, clean, engine, caplog):
    with caplog.at_level("INFO"):
        preprocess([source], tokenizer, tmp_path / "text", workers=1, engine=engine)
    assert contents(tmp_path / "text") == clean
    said = [record.message for record in caplog.records if "tokenizes" in record.message]
    assert len(said) == 1 and said[0].lower().startswith(engine)


def test_a_pattern_that_gigatoken_does_not_know(tmp_path, source, tokenizer, texts, caplog):
    spec = json.loads(tokenizer.read_bytes())
    spec["pre_tokenizer"]["use_regex"] = False  # whole texts are words
    (tmp_path / "whole.json").write_text(json.dumps(spec))
    with caplog.at_level("INFO"):
        preprocess([source], tmp_path / "whole.json", tmp_path / "text", workers=1)
    assert "not GigaToken, which is faster: its splitting pattern is not GPT-2's" in caplog.text
    library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    dataset, about = open_corpus(tmp_path / "text")
    end = about["vocab_size"] - 1
    assert [dataset[n].tolist() for n in range(50)] == [[*library.encode(text).ids, end] for text in texts[:50]]


def test_killed_work_continues_and_gives_the_same_bytes(tmp_path, source, tokenizer, clean, monkeypatch, caplog):
    prefix, parts = tmp_path / "text", tmp_path / "text.parts"
    command = [sys.executable, "-c", STALLED, source, tokenizer, prefix]
    for wanted in (3, 9):
        # Work goes on behind the first part that is missing, which a slow worker may leave for last.
        first = [parts / f"{number:07d}.part" for number in range(wanted)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not all(p.exists() for p in first) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert all(path.exists() for path in first)
        assert not any(path.exists() for path in corpus_files(prefix))
    last = max(parts.glob("*.part"))
    last.write_bytes(last.read_bytes()[:-1])  # what no kill leaves behind, but a failing disk may
    small_chunks(monkeypatch)
    with caplog.at_level("INFO"):
        deadline = time.monotonic() + 60
        while True:  # the killed run's workers end, and its lock with them, a moment later
            try:
                preprocess([source], tokenizer, prefix, workers=2)
                break
            except DataError as error:
                assert "another process" in str(error) and time.monotonic() < deadline
                time.sleep(0.1)
    assert "going on after" in caplog.text
    assert contents(prefix) == clean
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.bin", "text.idx", "text.json"]


def interrupt_after(parts: int, patch) -> None:
    """Make the reading of inputs fail, as Ctrl-C would, after so many chunks."""
    whole = readers.chunks

    def some(*args):
        for number, chunk in enumerate(whole(*args)):
            if number == parts:
                raise KeyboardInterrupt
            yield chunk

    patch.setattr(module, "chunks", some)


@pytest.mark.parametrize("change", ["nothing", "input", "key", "tokenizer", "engine"])
def test_interrupted_work_of_other_inputs_is_not_used(tmp_path, source, tokenizer, texts, change, monkeypatch, caplog):
    path, prefix = tmp_path / "text.jsonl", tmp_path / "out"
    path.write_text(
        "".join(json.dumps({"text": text, "id": f"number {n}"}) + "\n" for n, text in enumerate(texts[:500]))
    )
    small_chunks(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(6, patch)
        preprocess([path], tokenizer, prefix, workers=1)
    assert list((tmp_path / "out.parts").glob("*.part"))
    options = {"key": {"key": "id"}, "engine": {"engine": "tokenizers"}}.get(change, {})
    if change == "input":
        path.write_text(path.read_text().replace(" the ", " a "))
    if change == "tokenizer":
        tokenizer = tmp_path / "other.json"
        train_tokenizer(texts, 300).save(tokenizer)
    preprocess([path], tokenizer, prefix, workers=1, **options)
    preprocess([path], tokenizer, tmp_path / "fresh", workers=1, **options)
    assert contents(prefix) == contents(tmp_path / "fresh")
    assert ("starting anew" in caplog.text) == (change != "nothing")


def test_made_corpus_is_left_alone_until_something_changes(tmp_path, source, tokenizer, texts, caplog):
    path, prefix = tmp_path / "text.jsonl", tmp_path / "out"
    path.write_bytes(source.read_bytes())
    preprocess([path], tokenizer, prefix, workers=1)
    before = [file.stat().st_mtime_ns for file in corpus_files(prefix)]
    preprocess([path], tokenizer, prefix, workers=1)
    assert [file.stat().st_mtime_ns for file in corpus_files(prefix)] == before
    with path.open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    assert preprocess([path], tokenizer, prefix, workers=1)["documents"] == len(texts) + 1
    assert "was made with other sources" in caplog.text
    prefix.with_suffix(".bin").write_bytes(b"")
    assert preprocess([path], tokenizer, prefix, workers=1)["documents"] == len(texts) + 1
    open_corpus(prefix)


def test_rejected_records_are_listed_and_counted(tmp_path, tokenizer, monkeypatch, caplog):
    path, prefix = tmp_path / "text.jsonl", tmp_path / "out"
    bad = {3: b"{", 8: b'{"text": ""}', 9: b'{"text": "\xff"}', 20: b'{"text": " "}'}
    good = [bad.get(line, json.dumps({"text": f"line {line}"}).encode()) for line in range(1, 31)]
    path.write_bytes(b"\n".join(good))
    monkeypatch.setattr(readers, "READ_BYTES", 50)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 100)
    with pytest.raises(DataError, match=r"4 malformed records so far, and --max-rejected is 3: 2 empty") as error:
        preprocess([path], tokenizer, prefix, workers=2, max_rejected=3)
    assert f"{path}:3: invalid JSON" in str(error.value)
    assert not any(file.exists() for file in corpus_files(prefix))
    about = preprocess([path], tokenizer, prefix, workers=2, max_rejected=4)
    assert about["rejected"] == {"empty": 2, "invalid JSON": 1, "invalid UTF-8": 1}
    assert about["documents"] == 30 - len(bad)
    listed = (tmp_path / "out.rejected.txt").read_text().splitlines()
    assert [int(line.removeprefix(f"{path}:").split(":")[0]) for line in listed] == list(bad)
    assert all(f"{path}:{line}: " in caplog.text for line in bad)
    with pytest.raises(DataError, match="--max-rejected is 0"):
        preprocess([path], tokenizer, prefix, workers=1)


def test_other_fields_are_named_once(tmp_path, tokenizer, caplog):
    records = [{"text": "to be", "url": "x", "meta": {"a": 1}}, {"text": "or not", "url": "y"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    about = preprocess([tmp_path / "in.jsonl"], tokenizer, tmp_path / "out", workers=1)
    assert about["unread"] == {"url": 2, "meta": 1}
    assert caplog.text.count("fields that are not read, with their records: url (2), meta (1)") == 1
    assert list(sample_texts([tmp_path / "in.jsonl"])) == ["to be", "or not"]
    assert caplog.text.count("fields that are not read, with their records: url (2), meta (1)") == 2


def test_inputs_without_a_document_are_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(DataError, match="no document"):
        preprocess([tmp_path], tokenizer, tmp_path / "out", workers=1, max_rejected=1)


def test_the_tokenizer_is_not_overwritten(tmp_path, source, tokenizer):
    path = tmp_path / "code.json"
    path.write_bytes(Path(tokenizer).read_bytes())
    with pytest.raises(DataError, match=r"would overwrite its tokenizer .*code\.json"):
        preprocess([source], path, tmp_path / "code")
    assert path.read_bytes() == Path(tokenizer).read_bytes()


def test_two_processes_do_not_make_one_corpus(tmp_path, source, tokenizer):
    with (
        module.locked(tmp_path / "out.parts"),
        pytest.raises(DataError, match=r"another process.*out\.parts"),
    ):
        preprocess([source], tokenizer, tmp_path / "out", workers=1)


def test_killed_worker_is_reported(tmp_path, source, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "start_worker", functools.partial(os._exit, 1))
    with pytest.raises(DataError, match=r"worker process was killed.*goes on from here"):
        preprocess([source], tokenizer, tmp_path / "out", workers=1)


def test_unwritable_folder_is_reported(tmp_path, source, tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot work in"):
        preprocess([source], tokenizer, tmp_path / "file" / "out", workers=1)


def test_workers_stay_light():
    code = (
        "import megagpt.data.preprocess, sys; print([m for m in ('torch', 'megatron', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_sampled_texts_are_spread_over_the_inputs(tmp_path, texts, monkeypatch, caplog):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": name + text}) + "\n" for text in texts))
    small_chunks(monkeypatch)
    total = sum(len(text.encode()) + 1 for text in texts) / 1e6
    assert len(list(sample_texts([tmp_path]))) == 3 * len(texts)
    with caplog.at_level("INFO"):
        sample = list(sample_texts([tmp_path], max_mb=0.3 * total))
    assert abs(sum(len(text.encode()) for text in sample) / 1e6 - 0.3 * total) < 0.02 * total
    assert all(sum(text[0] == name for text in sample) > 0.08 * len(texts) for name in "abc")
    assert "spread evenly" in caplog.text
    (tmp_path / "d.txt").write_text("")
    with pytest.raises(DataError, match=r"d\.txt:1: empty"):
        list(sample_texts([tmp_path]))


def run_command(name, *args):
    command = [sys.executable, "-m", "megagpt.cli", "data", name, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_command_lines(tmp_path, data_dir):
    text = data_dir / "tinyshakespeare" / "input.txt"
    result = run_command("tokenizer", text, "--vocab-size", 512, "--max-mb", 0.5, "--output", tmp_path / "t.json")
    assert result.returncode == 0, result.stderr
    known = Tokenizer.load(tmp_path / "t.json")
    assert known.sha256 in result.stdout
    result = run_command("preprocess", text, "--tokenizer", tmp_path / "t.json", "--output", tmp_path / "corpus")
    assert result.returncode == 0, result.stderr
    dataset, _ = open_corpus(tmp_path / "corpus")
    assert known.decode(dataset[0]) == text.read_text()
    result = run_command("preprocess", text, "--tokenizer", tmp_path / "none.json", "--output", tmp_path / "corpus")
    assert result.returncode == DataError.exit_code
    assert "none.json" in result.stderr and "Traceback" not in result.stderr
