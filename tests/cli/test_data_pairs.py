"""`megagpt data pairs`."""

import dataclasses
import gzip
import json

import click
import pytest

from megagpt import cli
from megagpt.cli.data.pairs import command
from megagpt.data.packed import split_of
from megagpt.data.pair_sources.code import Functions
from megagpt.data.pair_sources.make import SHARES, Selection
from megagpt.data.pair_sources.neighbours import Neighbours
from megagpt.data.pairs import read_pairs, read_scored_pairs
from megagpt.errors import ConfigError, DataError

FUNCTION = '''def {name}(x):
    """Compute the {name} of a number."""
    {name}_value = x * {number}
    return {name}_value + {number}


'''
NAMES = ["area", "border", "centre", "depth", "edge", "frame", "girth", "height", "index", "joint"]


@pytest.fixture
def source(tmp_path):
    for number, name in enumerate(NAMES):
        path = tmp_path / "src" / name / "main.py"
        path.parent.mkdir(parents=True)
        path.write_text(FUNCTION.format(name=name, number=number))
    (tmp_path / "src" / "empty.py").write_text("")
    return tmp_path / "src"


def test_code_is_written_with_a_report_and_read_back(tmp_path, source, megagpt):
    output = tmp_path / "pairs.jsonl.gz"
    out = megagpt("data", "pairs", source, "--kind", "code", "--output", output)
    pairs = read_pairs([output])
    assert [pair.query for pair in pairs] == [f"Compute the {name} of a number." for name in NAMES]
    assert pairs[0].positive == "def area(x):\n    area_value = x * 0\n    return area_value + 0"
    assert [pair.split_key for pair in pairs] == [f"src/{name}" for name in NAMES]
    report = json.loads((tmp_path / "pairs.jsonl.gz.report.json").read_text())
    assert report["kept"]["pairs"] == 10
    assert report["dropped"] == {"file: empty": 1}
    assert report["characters"]["query"]["p100"] == len("Compute the border of a number.")
    assert "10 pairs in" in out
    again = tmp_path / "again.jsonl.gz"
    megagpt("data", "pairs", source, "--kind", "code", "--output", again)
    assert again.read_bytes() == output.read_bytes()


def test_splits_share_no_folder_and_together_are_everything(tmp_path, source, megagpt):
    shares = ["--split-shares", "0.5,0.3,0.2"]
    found = {}
    for split in ("train", "validation", "test"):
        wanted = [name for name in NAMES if split_of(f"src/{name}", (0.5, 0.3, 0.2)) == split]
        if not wanted:
            continue
        output = tmp_path / f"{split}.jsonl"
        megagpt("data", "pairs", source, "--kind", "code", "--output", output, "--split", split, *shares)
        found[split] = [pair.split_key for pair in read_pairs([output])]
        assert found[split] == [f"src/{name}" for name in wanted]
    assert sum(map(len, found.values())) == 10
    assert len(found) > 1


def test_neighbours_and_preview(tmp_path, megagpt):
    words = [f"word{number}" for number in range(400)]
    (tmp_path / "text.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"body": " ".join(words[at:])}) + "\n" for at in (0, 9)).encode())
    )
    out = megagpt("data", "pairs", tmp_path / "text.jsonl.gz", "--kind", "neighbours", "--key", "body", "--preview", 1)
    assert "query:\n  word" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.jsonl.gz"]
    output = tmp_path / "pairs.jsonl"
    megagpt("data", "pairs", tmp_path / "text.jsonl.gz", "--kind", "neighbours", "--key", "body", "--output", output,
            "--near-duplicates", 0, "--max-pairs", 1)  # fmt: skip
    (pair,) = read_pairs([output])
    last, first = pair.query.split()[-1], pair.positive.split()[0]
    assert int(first.removeprefix("word")) == int(last.removeprefix("word")) + 1
    assert pair.document == pair.split_key
    assert pair.document.startswith(f"{tmp_path}/text.jsonl.gz:")


def test_scored_pairs_are_written_for_measuring(tmp_path, megagpt):
    (tmp_path / "sts.csv").write_text("A man eats.,A man is eating.,4.8\nA dog.,Some clouds.,0.2\n")
    output = tmp_path / "sts.jsonl"
    megagpt("data", "pairs", tmp_path / "sts.csv", "--kind", "scored", "--output", output)
    assert [(one.sentence1, one.score) for one in read_scored_pairs(output)] == [("A man eats.", 4.8), ("A dog.", 0.2)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--kind", "neighbours", "--output", "p.jsonl"], ConfigError, "needs inputs"),
        (["absent.txt", "--kind", "neighbours", "--output", "p.jsonl"], DataError, "absent.txt"),
        (
            ["text.txt", "--kind", "neighbours", "--output", "p.jsonl"],
            DataError,
            "no pair is left; dropped: 1 document",
        ),
        (["text.txt", "--kind", "labelled", "--output", "p.jsonl"], DataError, "plain text"),
        (["text.txt", "--kind", "neighbours", "--output", "p.txt"], ConfigError, "ends in .jsonl"),
        (["text.txt", "--kind", "neighbours", "--preview", "0"], ConfigError, "--preview is 0"),
        (
            ["text.txt", "--kind", "neighbours", "--preview", "1", "--split-shares", "a,b"],
            ConfigError,
            "--split-shares",
        ),
        (["--kind", "code", "--preview", "1", "--languages", "pyton"], ConfigError, "pyton"),
        (["text.txt", "--kind", "scored", "--preview", "1", "--min-score", "1"], ConfigError, "--min-score"),
        (["text.txt", "--kind", "code", "--preview", "1", "--bm25-negatives", "1"], ConfigError, "--bm25-negatives"),
    ],
)
def test_mistakes_are_told_and_write_nothing(tmp_path, monkeypatch, megagpt, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Only a line.")
    with pytest.raises(error, match=message):
        megagpt("data", "pairs", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_defaults_are_those_of_the_library():
    fields = [field for kind in (Neighbours, Functions, Selection) for field in dataclasses.fields(kind)]
    library = {field.name: field.default for field in fields}
    given = {parameter.name: parameter.default for parameter in command.params if isinstance(parameter, click.Option)}
    for name in set(library) & set(given) - {"languages", "tests", "split", "max_pairs"}:  # nothing, unless given
        assert given[name] == library[name], name
    assert given["split_shares"] == ",".join(f"{share:g}" for share in SHARES)


def test_an_output_or_a_preview_is_needed(capsys):
    assert cli.run(["data", "pairs", "--kind", "code"]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "pairs", "negatives"),
    [
        (["snli_sample/snli_dev_part.jsonl.gz", "--kind", "labelled"], 432, 411),
        (["scifact", "--kind", "labelled", "--bm25-negatives", "2", "--max-pairs", "100"], 100, 100),
    ],
)
def test_real_sets(tmp_path, data_dir, megagpt, arguments, pairs, negatives):
    output = tmp_path / "pairs.jsonl"
    megagpt("data", "pairs", data_dir / arguments[0], *arguments[1:], "--output", output)
    found = read_pairs([output])
    assert len(found) == pairs
    assert sum(bool(pair.negatives) for pair in found) == negatives
    assert all(pair.text_ids[1] not in pair.text_ids[2:] for pair in found)
