"""Data is known by its content: wherever it lies, and as long as a run reads it."""

import os
from pathlib import Path

import numpy as np
import pytest

from megagpt.config.schema import Config, CorpusConfig, DataConfig, StageConfig
from megagpt.data import identity as module
from megagpt.data.identity import BLOCK, BLOCKS, WatchedFile, changes, fingerprint, identity, repeated
from megagpt.data.indexed import write_corpus
from megagpt.data.packed import PackedCorpus
from megagpt.errors import DataError

LARGE = BLOCK * BLOCKS * 3


def large(path: Path) -> bytearray:
    content = bytearray(np.random.default_rng(0).bytes(LARGE))
    path.write_bytes(content)
    return content


@pytest.mark.parametrize("place", [0, LARGE - 1])
def test_the_ends_of_a_large_file_count(tmp_path, place):
    content = large(tmp_path / "a")
    before = fingerprint(tmp_path / "a")
    content[place] ^= 1
    (tmp_path / "a").write_bytes(content)
    assert fingerprint(tmp_path / "a") != before


def test_what_is_exchanged_cut_off_or_blanked_is_another_file(tmp_path):
    content = large(tmp_path / "a")
    whole = fingerprint(tmp_path / "a")
    others = [content[:-1], content + b"x", bytes(LARGE), content[BLOCK:] + content[:BLOCK], content[: LARGE // 2]]
    others.append(content[: LARGE // 3] + bytes(LARGE // 50) + content[LARGE // 3 + LARGE // 50 :])
    found = {whole}
    for other in others:
        (tmp_path / "b").write_bytes(other)
        found.add(fingerprint(tmp_path / "b"))
    assert len(found) == 1 + len(others)
    (tmp_path / "b").write_bytes(content)
    assert fingerprint(tmp_path / "b") == whole


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, BLOCK * BLOCKS, BLOCK * BLOCKS + 1])
def test_files_of_few_blocks_are_read_whole(tmp_path, size):
    path = tmp_path / "a"
    path.write_bytes(bytes(size))
    before = fingerprint(path)
    if size and size <= BLOCK * BLOCKS:
        for place in {0, size // 2, size - 1}:
            path.write_bytes(bytes(place) + b"x" + bytes(size - place - 1))
            assert fingerprint(path) != before


def test_a_huge_file_costs_as_much_as_a_large_one(tmp_path, monkeypatch):
    read, pread = [], os.pread
    monkeypatch.setattr(module.os, "pread", lambda file, size, place: read.append(size) or pread(file, size, place))
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)
    fingerprint(tmp_path / "a")
    assert sum(read) == BLOCK * BLOCKS


def corpus(prefix: Path, first: int = 1) -> Path:
    tokens = np.arange(first, first + 5000, dtype=np.int32) % 997
    write_corpus(prefix, [(np.full(50, 100, np.int32), tokens)], 50, {"tokenizer_sha256": "0" * 64, "vocab_size": 1000})
    return prefix


def config(*prefixes: Path, conversations: tuple[Path, ...] = ()) -> Config:
    tokenizer = prefixes[0].parent / "tokenizer.json"
    tokenizer.write_text("{}")
    corpora = tuple(CorpusConfig(str(prefix)) for prefix in prefixes)
    data = DataConfig(str(tokenizer), corpora, conversations=tuple(map(str, conversations)))
    return Config(data=data, stage=StageConfig("ppo" if conversations else "pretrain"))


def test_every_input_has_its_name_and_a_change_is_told_by_it(tmp_path):
    (tmp_path / "moved").mkdir()
    talk = tmp_path / "talk.jsonl"
    talk.write_text("{}\n")
    before = identity(config(corpus(tmp_path / "a"), corpus(tmp_path / "b", 2), conversations=(talk,)))
    assert set(before) == {"data.tokenizer", "data.corpora[0]", "data.corpora[1]", "data.conversations[0]"}
    talk.write_text("[]\n")
    now = identity(config(corpus(tmp_path / "moved" / "a"), corpus(tmp_path / "moved" / "b", 3), conversations=(talk,)))
    texts = sorted(changes(before, now))
    assert len(texts) == 2
    assert texts[0].startswith(f"data.conversations[0] ({talk}) holds other data")
    assert texts[1].startswith(f"data.corpora[1] ({tmp_path}/moved/b)") and f"from {tmp_path}/b" in texts[1]
    assert not changes({}, now)


def test_files_beside_a_tokenizer_count(tmp_path):
    old, settings = tmp_path / "old", config(corpus(tmp_path / "a"))
    without = identity(settings)
    for name in ("chat_template.jinja", "generation_config.json", "special_tokens_map.json"):
        before = identity(settings)
        (tmp_path / name).write_text("{}")
        (text,) = changes(before, identity(settings))
        assert text.startswith(f"data.tokenizer ({tmp_path}/tokenizer.json) has other files beside it")
    now = identity(settings)
    assert not changes(now, identity(settings))
    older = without | {"data.tokenizer": {name: without["data.tokenizer"][name] for name in ("path", "content")}}
    assert not changes(older, now), "runs of before did not note these files"
    old.mkdir()
    for name in ("chat_template.jinja", "generation_config.json", "special_tokens_map.json"):
        (tmp_path / name).replace(old / name)
    assert not changes(without, identity(settings))
    moved = identity(config(corpus(old / "a")))
    assert not changes(now, moved)


def test_the_same_content_under_two_names_is_told(tmp_path):
    found = identity(config(corpus(tmp_path / "a"), corpus(tmp_path / "b"), corpus(tmp_path / "c", 2)))
    (text,) = repeated(found)
    assert text.startswith(f"data.corpora[1] ({tmp_path}/b) has the content of data.corpora[0] ({tmp_path}/a)")


def samples(path: Path) -> tuple[PackedCorpus, np.ndarray]:
    opened = PackedCorpus(corpus(path), (1, 0, 0), "train", 64)
    return opened, np.stack([opened[place] for place in range(10)])


def test_what_is_read_is_what_was_written(tmp_path):
    opened, _ = samples(tmp_path / "a")
    assert (opened.read(0, 5000) == np.arange(1, 5001) % 997).all()
    assert (opened.read(250, 101) == np.arange(251, 352) % 997).all()


def test_a_file_that_is_cut_off_is_named(tmp_path):
    opened, _ = samples(tmp_path / "a")
    os.truncate(tmp_path / "a.bin", 1000)
    with pytest.raises(DataError, match=r"a\.bin ends at byte 1000.* cut off while the run reads it"):
        for place in range(10):
            opened[place]


@pytest.mark.parametrize(
    ("what", "message"),
    [("other", "was changed or exchanged"), ("in place", "was changed or exchanged"), ("gone", "is gone while")],
)
def test_a_file_that_is_exchanged_is_named(tmp_path, monkeypatch, what, message):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)
    opened, _ = samples(tmp_path / "a")
    binary = tmp_path / "a.bin"
    if what == "other":
        corpus(tmp_path / "b", 7)
        (tmp_path / "b.bin").replace(binary)
    elif what == "in place":
        with binary.open("r+b") as file:
            file.write(bytes(64))
        os.utime(binary, ns=(1, 1))
    else:
        binary.unlink()
    with pytest.raises(DataError, match=rf"a\.bin {message}"):
        opened[0]


def test_a_file_that_is_touched_or_restored_is_read_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)
    opened, before = samples(tmp_path / "a")
    os.utime(tmp_path / "a.bin", ns=(1, 1))
    content = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin").write_bytes(content)
    assert (np.stack([opened[place] for place in range(10)]) == before).all()


def test_a_missing_file_is_named(tmp_path):
    for call in (fingerprint, WatchedFile):
        with pytest.raises(DataError, match=r"cannot read .*absent: No such file"):
            call(tmp_path / "absent")
