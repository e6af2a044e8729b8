"""Metrics of edits, and their evaluation from the command line."""

import json
import random
import shutil
from pathlib import Path

import pytest

from megagpt import cli
from megagpt.data.edits.make import make_edits
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.edits import levenshtein, read_edits, similarity

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
TEXT = ["The river runs to the sea. Every boat on it is old, and every boat has a name."]


def by_recursion(first: str, second: str) -> int:
    """The definition of Levenshtein's distance."""
    if not first or not second:
        return len(first) + len(second)
    change = by_recursion(first[1:], second[1:]) + (first[0] != second[0])
    return min(change, by_recursion(first[1:], second) + 1, by_recursion(first, second[1:]) + 1)


def test_the_distance_is_levenshteins():
    rng = random.Random(0)
    for _ in range(60):
        first, second = ("".join(rng.choices("ab\U0001f600", k=rng.randrange(6))) for _ in range(2))
        assert levenshtein(first, second) == by_recursion(first, second)
    assert levenshtein("kitten" * 40, "sitting" * 40) == levenshtein("sitting" * 40, "kitten" * 40)
    assert similarity("kitten", "sitting") == 1 - by_recursion("kitten", "sitting") / 7
    assert (similarity("", ""), similarity("a", ""), similarity("same", "same")) == (1, 0, 1)


def run(*arguments: str) -> None:
    assert cli.run(["evaluate", "task=edits", *arguments]) == 0


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """A file of edits, their right responses, their inputs, and too few responses."""
    edits = [e.record() for e in make_edits(TEXT, 9, kinds=("sort_lines", "uppercase", "fix_bug"), max_chars=200)]
    lines = {
        "edits": edits,
        "right": [{"response": edit["output"]} for edit in edits],
        "unchanged": [{"response": edit["input"]} for edit in edits],
        "few": [{"response": ""}],
    }
    for name, records in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return {name: str(tmp_path / f"{name}.jsonl") for name in lines} | {"output": str(tmp_path / "out")}


@needs_bubblewrap
@pytest.mark.parametrize("responses", ["right", "unchanged"])
def test_right_responses_score_all_and_unchanged_inputs_nothing(files, responses, monkeypatch, capsys):
    run(f"data={files['edits']}", f"completions={files[responses]}", f"output={files['output']}")
    result = json.loads(Path(files["output"], "result.json").read_text())
    right = responses == "right"
    for kind in ("all", "sort_lines", "uppercase", "fix_bug"):
        metrics = result["metrics"][kind]
        assert metrics["exact_match"] == float(right)
        assert (metrics["similarity"] == 1) == right
        assert metrics["unchanged_exact_match"] == 0
    assert result["metrics"]["fix_bug"]["tests_passed"] == result["metrics"]["all"]["tests_passed"] == float(right)
    assert result["metrics"]["all"]["tested"] == result["metrics"]["fix_bug"]["edits"] == 3
    assert "tests_passed" not in result["metrics"]["uppercase"]
    expected = [similarity(edit.input, edit.output) for edit in read_edits(Path(files["edits"]))]
    assert result["metrics"]["all"]["unchanged_similarity"] == pytest.approx(sum(expected) / 9)
    assert f"exact match {100 * right:.1f}%" in capsys.readouterr().out


@needs_bubblewrap
def test_edits_whose_own_output_fails_are_left_out_and_named(files, tmp_path, capsys, caplog):
    edits = [json.loads(line) for line in Path(files["edits"]).read_text().splitlines()]
    with_tests = [place for place, edit in enumerate(edits) if edit["kind"] == "fix_bug"]
    edits[with_tests[0]]["tests"] = "import no_such_package"
    edits[with_tests[1]]["output"] = edits[with_tests[1]]["input"]  # the output is wrong, and so is the same response
    data, right = tmp_path / "broken.jsonl", tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps(edit | {"note": 1}) + "\n" for edit in edits))
    right.write_text("".join(json.dumps({"response": edit["output"]}) + "\n" for edit in edits))
    run(f"data={data}", f"completions={right}", f"output={files['output']}")
    result = json.loads(Path(files["output"], "result.json").read_text())
    names = [f"edit {place + 1}" for place in with_tests[:2]]
    assert result["left_out"]["edits"] == 2
    assert list(result["left_out"]["reasons"]) == names
    assert "no_such_package" in result["left_out"]["reasons"][names[0]]
    assert result["data"]["edits"] == 9
    assert result["metrics"]["all"]["edits"] == 7
    assert (result["metrics"]["fix_bug"]["tested"], result["metrics"]["fix_bug"]["tests_passed"]) == (1, 1)
    assert result["metrics"]["all"]["exact_match"] == 1
    shown = capsys.readouterr().out
    assert "2 edits left out of all figures" in shown and all(f"  {name}: " in shown for name in names)
    assert "broken.jsonl: fields that are not read, with their records: note (9)" in caplog.text
    only = tmp_path / "only.jsonl"
    only.write_text(json.dumps(edits[with_tests[0]]) + "\n")
    right.write_text('{"response": ""}\n')
    with pytest.raises(DataError, match=r"no edit can be judged: .*no_such_package"):
        run(f"data={only}", f"completions={right}", f"output={tmp_path}/other")


@needs_bubblewrap
def test_what_does_not_fit_together_is_refused(files, monkeypatch, tmp_path):
    data, output = f"data={files['edits']}", f"output={files['output']}"
    with pytest.raises(DataError, match="1 responses to 9 edits"):
        run(data, f"completions={files['few']}", output)
    with pytest.raises(ConfigError, match="different completions"):
        run(data, f"completions={files['right']}", output)
    with pytest.raises(DataError, match=r'few.jsonl:1: an edit needs "instruction"'):
        run(f"data={files['few']}", f"completions={files['right']}", f"output={tmp_path}/other")
    with pytest.raises(ConfigError, match="either checkpoint"):
        run(data, output)
    with pytest.raises(ConfigError, match=r"unknown key 'limt'; did you mean limit"):
        run(data, output, "limt=3", f"completions={files['right']}")


def test_without_bubblewrap_nothing_is_run(files, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="sandbox=none"):
        run(f"data={files['edits']}", f"completions={files['right']}", f"output={files['output']}")
