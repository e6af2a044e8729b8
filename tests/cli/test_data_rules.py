"""`megagpt data rules`."""

import json

import pytest

from megagpt.data.rules import documents, questions
from megagpt.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], lambda: documents(20, 3)),
        (["--kinds", "pattern,words"], lambda: documents(20, 3, ["pattern", "words"])),
        (["--shuffled"], lambda: documents(20, 3, shuffled=True)),
        (["--split", "test"], lambda: questions(20, 3)),
    ],
    ids=["plain", "kinds", "shuffled", "test"],
)
def test_records_are_those_of_the_library(tmp_path, megagpt, options, expected):
    out = megagpt("data", "rules", "--count", 20, "--seed", 3, *options, "--output", tmp_path / "rules.jsonl")
    records = [json.loads(line) for line in (tmp_path / "rules.jsonl").read_text().splitlines()]
    assert records == json.loads(json.dumps(list(expected())))
    assert f"20 {'questions' if 'test' in options else 'documents'}" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "--count is 0"),
        (["--kinds", "cycle"], "no rules of kind cycle"),
        (["--shuffled", "--split", "test"], "--shuffled is for documents"),
    ],
)
def test_mistakes_are_told_and_write_nothing(tmp_path, megagpt, options, message):
    with pytest.raises(ConfigError, match=message):
        megagpt("data", "rules", *options, "--output", tmp_path / "rules.jsonl")
    assert not (tmp_path / "rules.jsonl").exists()
