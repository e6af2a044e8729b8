"""The byte-level BPE: exact round trips, GPT-2's rules, refusal of what is not one."""

import hashlib
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from megagpt.data import tokenizer as module
from megagpt.data.code_tokens import grow_for_code
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from megagpt.errors import DataError

TEXTS = ["the cat sat on the mat; the dog sat on the log.\n", "def f(x):\n    return x + 1\n", "naïve café 中文 🎉"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def test_vocabulary_holds_all_bytes_and_end_of_text_last(tokenizer):
    assert tokenizer.vocab_size == 300
    assert tokenizer.end_of_text_id == 299
    assert {tokenizer.decode_bytes([i]) for i in range(256)} == {bytes([b]) for b in range(256)}


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text]) == [ids]
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@given(
    text=st.text(st.sampled_from("ab7 \n\t.,'\x1c\x85\u3000中。_s"), max_size=60) | st.text(), piece=st.integers(1, 9)
)
@settings(max_examples=300, deadline=None)
def test_long_texts_are_encoded_in_pieces_without_a_difference(tokenizer, text, piece):
    whole = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        assert tokenizer.encode(text) == whole
        assert tokenizer.encode_batch([text, "x"]) == [whole, tokenizer.encode("x")]


def test_a_long_text_is_really_cut(tokenizer):
    pieces = list(tokenizer._pieces(TEXTS[0] * module.PIECE))[:3]
    assert all(module.PIECE <= len(piece) < module.PIECE + len(TEXTS[0]) for piece in pieces)


def test_long_texts_are_whole_where_a_space_is_put_before_each(tokenizer, monkeypatch):
    spec = json.loads(tokenizer.to_json())
    spec["pre_tokenizer"]["add_prefix_space"] = True
    known, text = Tokenizer(json.dumps(spec).encode()), "the cat\nsat on\nthe mat\n"
    expected = Library.from_str(json.dumps(spec)).encode(text).ids
    monkeypatch.setattr(module, "PIECE", 3)
    assert known.encode(text) == expected


def test_files_that_do_not_say_how_they_split_are_cut(tokenizer):
    spec = json.loads(tokenizer.to_json())
    del spec["pre_tokenizer"]["use_regex"]  # as in GPT-2's own tokenizer.json
    assert len(list(Tokenizer(json.dumps(spec).encode())._pieces(TEXTS[0] * module.PIECE))) > 2


def test_special_token_in_text_is_plain_text(tokenizer):
    text = f"a{END_OF_TEXT}b"
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text_id not in ids
    assert tokenizer.decode([*ids, tokenizer.end_of_text_id]) == text
    assert tokenizer.token_bytes[tokenizer.end_of_text_id] == 0


def test_broken_utf8_is_replaced_in_text_and_kept_in_bytes(tokenizer):
    ids = tokenizer.encode("中")
    assert tokenizer.decode_bytes(ids[:1]) == "中".encode()[: tokenizer.token_bytes[ids[0]]]
    assert tokenizer.decode([i for i in range(256) if tokenizer.decode_bytes([i]) == b"\xff"]) == "\ufffd"


def test_tokens_do_not_cross_gpt2_boundaries(tokenizer):
    space_the = tokenizer.encode(" the")
    assert len(space_the) == 1  # a word takes the space before it
    assert tokenizer.encode("on the") == [*tokenizer.encode("on"), *space_the]


def test_training_is_deterministic_and_saving_keeps_the_hash(tokenizer, tmp_path):
    path = tmp_path / "folder" / "tokenizer.json"
    tokenizer.save(path)
    assert train_tokenizer(iter(TEXTS), 300).sha256 == tokenizer.sha256
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tokenizer.sha256
    loaded = Tokenizer.load(path)
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert np.array_equal(loaded.token_bytes, tokenizer.token_bytes)
    assert [item.name for item in path.parent.iterdir()] == ["tokenizer.json"]


def test_agrees_with_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "tokenizer.json")
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in TEXTS[:3]:
        assert other(text)["input_ids"] == tokenizer.encode(text)
        assert other.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the tokenizer"),
        ("{]", "is not a tokenizer.json"),
        (lambda spec: spec | {"decoder": None}, "not a byte-level BPE"),
        (lambda spec: spec | {"added_tokens": []}, END_OF_TEXT),
    ],
)
def test_refuses_other_files_by_name(tokenizer, tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    if content is None:
        path.unlink()
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content(json.loads(path.read_bytes()))))
    with pytest.raises(DataError, match=message) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)


def test_what_is_no_file_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    for make, message in (
        (os.mkfifo, r"a named pipe \(FIFO\), not a file"),
        (os.mkdir, "a folder, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
        (lambda path: path.symlink_to("/nowhere"), "a link to /nowhere, where nothing is"),
    ):
        make(path)
        with pytest.raises(DataError, match=f"cannot read the tokenizer {path}: {message}"):
            Tokenizer.load(path)
        path.rmdir() if path.is_dir() else path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)  # sparse
    with pytest.raises(DataError, match=r"more than 67,108,864 bytes, which no tokenizer\.json has"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda spec: spec["model"]["vocab"].update({"\u4e2d": 777}),
            "byte-level BPE does not use|the id",
        ),
        (lambda spec: spec["model"]["vocab"].update({"!!!!": 777}), "none has the id"),
    ],
)
def test_tokens_that_stand_for_no_bytes_are_named(tokenizer, tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    spec = json.loads(tokenizer.to_json())
    change(spec)
    path.write_text(json.dumps(spec))
    with pytest.raises(DataError, match=message):
        Tokenizer.load(path).token_bytes  # noqa: B018


def test_vocabulary_too_small():
    with pytest.raises(DataError, match="at least 257"):
        train_tokenizer(TEXTS, 256)


def test_first_difference_of_an_older_tokenizer():
    old = train_tokenizer(["the cat sat on the mat"] * 3, 262)
    assert grow_for_code(old).first_difference(old) is None
    assert old.first_difference(grow_for_code(old)) == old.vocab_size
    assert train_tokenizer(["another text altogether"] * 3, 262).first_difference(old) == 256
