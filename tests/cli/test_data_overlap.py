"""`megagpt data overlap`."""

import json

import pytest

from megagpt.errors import ConfigError, DataError

EXAMPLES = [
    "one two three four five six seven eight nine",
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "set.txt").write_text("".join(f"{line}\n" for line in EXAMPLES))
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": f"See: {EXAMPLES[1].upper()}!"}))
    return tmp_path


def test_clean_examples_are_written(files, megagpt):
    words = ["data", "overlap", files / "set.txt", "--corpus", files / "corpus.jsonl"]
    out = megagpt(*words, "--output", files / "clean")
    assert [line.split() for line in out.splitlines()[1:2]] == [["set.txt", "8", "2", "0", "1", "50.00%"]]
    one = json.loads((files / "clean" / "clean.json").read_text())["sets"]["set.txt"]
    assert one["dirty_records"] == [2]
    assert json.loads((files / "clean" / "set.txt.clean.jsonl").read_text()) == {"record": 1, "value": EXAMPLES[0]}
    assert "100.00%" in megagpt(*words, "--output", files / "other", "--ngram", "set.txt=9")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--ngram", "set.txt"], ConfigError, "--ngram set.txt: give FILE=N"),
        (["--ngram", "set.txt=65"], ConfigError, "N from 1 to 64"),
        (["--ngram", "other.txt=9"], ConfigError, "the files are set.txt"),
        (["--key", "body"], DataError, "missing key"),
    ],
)
def test_mistakes_are_told(files, megagpt, words, error, message):
    with pytest.raises(error, match=message):
        megagpt(
            "data", "overlap", files / "set.txt", "--corpus", files / "corpus.jsonl", "--output", files / "c", *words
        )
