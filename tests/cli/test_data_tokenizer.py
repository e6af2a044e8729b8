"""The command line that trains a tokenizer and extends one for code."""

import re
from functools import partial

import pytest

from megagpt.data.code_tokens import FIM_TOKENS
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError


@pytest.fixture
def call(monkeypatch, megagpt, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prose.txt").write_text("the cat sat on the mat and the dog on the log\n" * 9)
    (tmp_path / "code.txt").write_text("def f():\n        return 1\n" * 9)
    return partial(megagpt, "data", "tokenizer")


def test_train_then_extend(call, tmp_path):
    call("prose.txt", "--vocab-size", "270", "--output", "old.json")
    out = call("--extend", "old.json", "--output", "new.json", "code.txt")
    old, new = Tokenizer.load(tmp_path / "old.json"), Tokenizer.load(tmp_path / "new.json")
    assert set(FIM_TOKENS) <= set(new.special_ids)
    text = (tmp_path / "code.txt").read_text()
    before, after = len(old.encode(text)), len(new.encode(text))
    assert f"{after} tokens instead of {before}, {1 - after / before:.1%} fewer" in out
    assert re.search(rf"new\.json: {new.vocab_size} tokens, sha256 {new.sha256}", out)
    call("--extend", "old.json", "--output", "short.json", "--longest-run", "4", "code.txt")
    assert Tokenizer.load(tmp_path / "short.json").vocab_size == old.vocab_size + 3 + len(FIM_TOKENS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["prose.txt"], ConfigError, "--vocab-size"),
        (["--vocab-size", "300"], ConfigError, "files to train on"),
        (["--extend", "absent.json"], DataError, "absent.json"),
        (["--extend", "absent.json", "--vocab-size", "300"], ConfigError, "leave it out"),
    ],
)
def test_what_is_wrong_is_said(call, arguments, error, message):
    with pytest.raises(error, match=message):
        call(*arguments, "--output", "out.json")
