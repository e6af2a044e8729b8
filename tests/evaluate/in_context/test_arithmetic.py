"""Arithmetic made by program: right answers, and the form and the operands of OpenAI's files."""

import gzip
import json
import re
from collections import Counter

import pytest
from scipy.stats import chisquare, ks_2samp

from megagpt.errors import ConfigError
from megagpt.evaluate.in_context.arithmetic import TASKS, arithmetic

NAMES = {"plus": "+", "minus": "-", "times": "*"}


def expression(context: str) -> str:
    """What Python computes for a question; the whole context must have the form of OpenAI's files."""
    question = re.fullmatch(r"\n\nQ: What is (.+)\?\n\nA:", context)[1]
    if digits := re.fullmatch(r"the sum of the digits of the number (\d+)", question):
        return "+".join(digits[1])
    return re.sub("plus|minus|times", lambda name: NAMES[name[0]], question)


def operands(problem: dict[str, str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", problem["context"])]


def published(folder, task: str) -> list[dict[str, str]]:
    with gzip.open(folder / "gpt3_synthetic" / f"{task}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("task", sorted(TASKS))
def test_answers_are_what_python_computes(task):
    problems = arithmetic(task, seed=3)
    assert len({problem["context"] for problem in problems}) == 2000
    for problem in problems:
        terms = expression(problem["context"])
        value = sum(map(int, terms.split("+"))) if task == "sum_of_digits" else eval(terms)
        assert problem["completion"] == f" {value}"


@pytest.mark.parametrize("task", sorted(TASKS))
def test_as_published(task, data_dir):
    """The same words around the numbers, no leading zeros, and operands of the same distribution."""
    ours, theirs = arithmetic(task, seed=5), published(data_dir, task)
    assert len(ours) == len(theirs) == 2000
    shape = Counter(re.sub(r"\d+", "N", problem["context"]) for problem in ours)
    assert shape.keys() == {re.sub(r"\d+", "N", problem["context"]) for problem in theirs}
    assert len(shape) == 1 or chisquare(list(shape.values())).pvalue > 1e-3
    for problems in (ours, theirs):
        assert not [problem for problem in problems if re.search(r"\b0\d", problem["context"] + problem["completion"])]
    for at in range(len(operands(ours[0]))):
        columns = [[operands(problem)[at] for problem in problems] for problems in (ours, theirs)]
        assert ks_2samp(*columns).pvalue > 1e-3
    if task == "single_digit_three_ops":
        assert {number for problem in ours for number in operands(problem)} == set(range(1, 10))
    assert any(" -" in problem["completion"] for problem in ours) == any(" -" in one["completion"] for one in theirs)


def test_seed_decides():
    assert arithmetic("two_digit_addition", 50, seed=1) == arithmetic("two_digit_addition", 50, seed=1)
    assert arithmetic("two_digit_addition", 50, seed=1) != arithmetic("two_digit_addition", 50, seed=2)
    assert arithmetic("two_digit_addition", 50, seed=1) == arithmetic("two_digit_addition", 60, seed=1)[:50]


def test_what_cannot_be_made():
    with pytest.raises(ConfigError, match="no arithmetic task seven_digit_addition; there are two_digit"):
        arithmetic("seven_digit_addition")
    with pytest.raises(ConfigError, match="has 10000 different problems, fewer than the 10001"):
        arithmetic("two_digit_multiplication", 10_001)
    assert len(arithmetic("two_digit_multiplication", 10_000)) == 10_000
    assert len(arithmetic("single_digit_three_ops", 6561)) == 6561
