"""Inputs that are no files, or that are bombs: named by every reader, and never waited for."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from megagpt.cli.generate import read_prompts
from megagpt.config import load
from megagpt.data.conversations import read_conversations
from megagpt.data.corpus.code.contamination import read_evaluation
from megagpt.data.corpus.text.decontamination.records import read_records
from megagpt.data.corpus.text.limits import Urls
from megagpt.data.corpus.text.mixture import read_corpus
from megagpt.data.corpus.text.quality.keep import read_scores
from megagpt.data.corpus.text.quality.model import load_model
from megagpt.data.corpus.text.rules.c4 import load_bad_words
from megagpt.data.corpus.text.rules.urls import load_url_rules
from megagpt.data.files import SLACK, file_sha256, read_input
from megagpt.data.identity import WatchedFile, fingerprint
from megagpt.data.indexed import check_corpus, write_corpus
from megagpt.data.pairs import read_pairs
from megagpt.data.readers import find_sources
from megagpt.data.scored_pairs import read_sentence_pairs
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError, MegaGPTError
from megagpt.evaluate.code_tasks import read_problems
from megagpt.evaluate.edits import read_edits
from megagpt.evaluate.linear_probe import read_labelled
from megagpt.plan.devices import load_devices
from tests.memory import peak_growth

READERS = {
    "prompts.txt": read_prompts,
    "run.yaml": load.read,
    "conversations.jsonl": lambda path: read_conversations([path]),
    "evaluation.jsonl": lambda path: read_evaluation([path]),
    "evaluation.jsonl.gz": lambda path: read_evaluation([path]),
    "records.csv.gz": lambda path: list(read_records(path)),
    "records.parquet": lambda path: list(read_records(path)),
    "domains.txt": lambda path: load_url_rules(Urls(domains=str(path))),
    "corpus.json": lambda path: read_corpus(f"a={path}"),
    "scores.npy": read_scores,
    "scores.jsonl": read_scores,
    "model.json": lambda path: load_model(path.parent),
    "bad.txt": lambda path: load_bad_words(str(path)),
    "hashed": file_sha256,
    "data": fingerprint,
    "watched": WatchedFile,
    "pairs.tsv": read_sentence_pairs,
    "problems.jsonl": lambda path: read_problems("humaneval", path),
    "devices.yaml": load_devices,
    "pairs.jsonl": lambda path: read_pairs([path]),
    "text.jsonl": lambda path: find_sources([path]),
    "folder.txt": lambda path: find_sources([path.parent]),
    "tokenizer.json": Tokenizer.load,
    "edits.jsonl": read_edits,
    "labelled.jsonl": read_labelled,
}
THINGS = {
    "a pipe": (os.mkfifo, r"a named pipe \(FIFO\), not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
    "a link to nothing": (lambda path: path.symlink_to("/nowhere"), "a link to /nowhere, where nothing is"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_named(name, thing, tmp_path):
    """A pipe would be waited for until somebody writes into it, /dev/zero be read for ever."""
    make, message = THINGS[thing]
    make(tmp_path / name)
    with pytest.raises(MegaGPTError, match=message) as error:
        READERS[name](tmp_path / name)
    assert str(tmp_path) in str(error.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("suffix", [".json", ".idx", ".bin"])
def test_a_corpus_with_what_is_no_file(suffix, thing, tmp_path):
    about = {"tokenizer_sha256": "", "vocab_size": 10}
    write_corpus(tmp_path / "a", [(np.array([3], np.int32), np.array([1, 2, 3], np.int32))], 1, about)
    check_corpus(tmp_path / "a")
    path = tmp_path / f"a{suffix}"
    path.unlink()
    make, message = THINGS[thing]
    make(path)
    with pytest.raises(DataError, match=f"cannot read {path}: .*({message})"):
        check_corpus(tmp_path / "a")


def test_a_file_is_a_file_also_by_a_link(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    assert read_input(tmp_path / "b") == b"x"
    with pytest.raises(DataError, match="No such file"):
        read_input(tmp_path / "c")


def test_content_is_unpacked(tmp_path):
    path = Path(tmp_path, "a.gz")
    path.write_bytes(gzip.compress(b"first\n") + gzip.compress(b"second\n"))
    assert read_input(path) == b"first\nsecond\n"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=f"cannot read words from {path}: "):
        read_input(path, "words")


def test_bombs_are_refused(tmp_path):
    """A megabyte that would become a gigabyte."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(1 << 25), 9) * 32)

    def refuse() -> None:
        with pytest.raises(DataError, match=r"a\.jsonl\.gz: it holds more than .* bytes: unpack it yourself"):
            read_input(path)

    assert peak_growth(refuse) < 6 * SLACK
