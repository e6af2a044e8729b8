"""Evaluation data is found in files that hold it, whole or in part, and nowhere else."""

import ast
import gzip
import json

import pytest

pytest.importorskip("xxhash", reason="megagpt[corpora] is not installed")

from megagpt.data.corpus.code.contamination import Evaluation, ngram_hashes, read_evaluation, words
from megagpt.errors import DataError

THIRTEEN = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu"


def evaluation(tmp_path, *records, length=13):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_evaluation([path], length)


def test_thirteen_words_are_an_overlap_and_twelve_are_not(tmp_path):
    known, short = evaluation(tmp_path, {"question": THIRTEEN})
    assert not short
    assert known.overlap(f"x = 1\n{THIRTEEN}\n") == f'set.jsonl: "{THIRTEEN}"'
    assert known.overlap(THIRTEEN.upper().replace(" ", "(\n"))  # punctuation, case and white space aside
    assert known.overlap(THIRTEEN.rsplit(" ", 1)[0]) is None
    assert known.overlap(THIRTEEN.replace("beta", "beth")) is None
    assert known.overlap(" ".join(reversed(THIRTEEN.split()))) is None
    assert known.overlap("") is None


def test_strings_count_wherever_they_are_in_a_record(tmp_path):
    known, _ = evaluation(tmp_path, {"id": 1, "choices": [{"label": "A", "text": THIRTEEN}]})
    assert known.overlap(THIRTEEN)


def test_rows_of_numbers_are_no_overlap(tmp_path):
    numbers = ", ".join(map(str, range(30)))
    known, _ = evaluation(tmp_path, {"test": f"assert f([{numbers}]) == 3"})
    assert known.overlap(f"x = [{numbers}]") is None


def test_short_records_are_counted(tmp_path):
    known, short = evaluation(tmp_path, {"question": "What is this?"}, {"question": THIRTEEN})
    assert short == 1 and len(known.hashes) == 1


def test_hashes_are_of_runs_in_order():
    runs = ngram_hashes(words("a b c a b c"), 3)
    assert len(runs) == 4 and runs[0] == runs[3] and len(set(runs.tolist())) == 3
    assert len(ngram_hashes(words("a b"), 3)) == 0


def test_saved_and_loaded(tmp_path):
    known, _ = evaluation(tmp_path, {"question": THIRTEEN})
    known.save(tmp_path / "set.npz")
    assert Evaluation.load(tmp_path / "set.npz").overlap(THIRTEEN) == known.overlap(THIRTEEN)
    nothing, _ = read_evaluation([])
    nothing.save(tmp_path / "none.npz")
    assert Evaluation.load(tmp_path / "none.npz").overlap(THIRTEEN) is None


def test_malformed_evaluation_data_is_named(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"a": "b"}\nnonsense\n')
    with pytest.raises(DataError, match=r"set\.jsonl:2: not JSON"):
        read_evaluation([path])
    path.write_text('{"a": "b"}\n[1]\n')
    with pytest.raises(DataError, match=r"set\.jsonl:2: list, not a JSON object"):
        read_evaluation([path])
    (tmp_path / "set.jsonl.gz").write_bytes(gzip.compress(b'{"a": "b"}\n')[:-4])
    with pytest.raises(DataError, match=r"cannot read .*set\.jsonl\.gz"):
        read_evaluation([tmp_path / "set.jsonl.gz"])


def test_every_humaneval_problem_is_found(data_dir):
    path = data_dir / "humaneval" / "HumanEval.jsonl.gz"
    known, short = read_evaluation([path])
    assert not short
    with gzip.open(path) as file:
        problems = [json.loads(line) for line in file]
    for problem in problems:
        program = problem["prompt"] + problem["canonical_solution"]
        assert known.overlap(problem["prompt"]) and known.overlap(f"import os\n\n{program}\n"), problem["task_id"]
        tree = ast.parse(program)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        bare = ast.unparse(tree)
        enough = len(words(bare)) >= 13
        assert not enough or known.overlap(bare), problem["task_id"]
        body = problem["canonical_solution"]
        assert known.overlap(body) or len(words(body)) < 13, problem["task_id"]
