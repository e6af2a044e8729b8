"""`megagpt data edits`."""

import json

import pytest

from megagpt.errors import ConfigError, DataError


def test_edits_of_given_files_are_the_same_each_time(tmp_path, megagpt):
    (tmp_path / "text.txt").write_text("The river runs to the sea. Every boat on it is old and has a name.")
    kinds = ["--kinds", "spelling,sort_lines", "--kinds", "fix_bug", "--max-chars", "200"]
    for name in ("one", "two"):
        output = str(tmp_path / f"{name}.jsonl")
        out = megagpt("data", "edits", tmp_path / "text.txt", *kinds, "--count", 9, "--output", output)
    records = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert len(records) == 9
    assert {"kind", "instruction", "input", "output"} <= set(records[0])
    assert [("tests" in record) for record in records] == [record["kind"] == "fix_bug" for record in records]
    assert "9 edits: 3 spelling, 3 sort_lines, 3 fix_bug" in out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--count", "0"], ConfigError, "--count is 0"),
        (["--kinds", "speling"], ConfigError, "kinds speling of edits"),
        (["absent.txt"], DataError, "absent.txt"),
        (["text.txt", "--kinds", "rename"], DataError, "no further edit of kind rename, with 0 texts"),
    ],
)
def test_mistakes_are_told_and_write_nothing(tmp_path, monkeypatch, megagpt, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Only prose is here, and no code.")
    with pytest.raises(error, match=message):
        megagpt("data", "edits", *arguments, "--output", "edits.jsonl")
    assert not (tmp_path / "edits.jsonl").exists()
