"""Two results compared pair by pair, beside scipy's tests; what cannot be compared says why."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megagpt.evaluate.in_context.compare import as_text, compare
from megagpt.evaluate.in_context.outcomes import ExampleOutcome, TaskOutcome
from megagpt.evaluate.in_context.results import read_several, write_results

stats = pytest.importorskip("scipy.stats")

RANDOM = np.random.default_rng(0)
FIRST = [float(value) for value in RANDOM.random(200) < 0.4]
SECOND = [
    value if chance < 0.7 else float(chance < 0.9) for value, chance in zip(FIRST, RANDOM.random(200), strict=True)
]


def outcome(values, metric: str = "accuracy", **fields) -> TaskOutcome:
    examples = [
        ExampleOutcome(str(i), f"Q{i} A:", 1, (), (), "a", "b", {metric: float(value)})
        for i, value in enumerate(values)
    ]
    given = {
        "task": "animals",
        "shots": 1,
        "metrics": {metric: float(np.mean(values))},
        "main_metric": metric,
        "higher_is_better": True,
        "chance": None,
        "examples": examples,
    }
    return TaskOutcome(**given | fields)


@pytest.fixture
def compared(tmp_path):
    """Compares two lists of outcomes as results `a` and `b`, by protocols."""

    def call(first, second, protocols=("gpt3", "gpt3")):
        folders: list[Path] = [tmp_path / name for name in ("a", "b")]
        for folder, outcomes, protocol in zip(folders, (first, second), protocols, strict=True):
            write_results(folder, {"protocol": protocol}, outcomes)
        return compare(*read_several(folders))

    return call


def test_right_and_wrong_by_mcnemars_test(compared):
    found = compared([outcome(FIRST)], [outcome(SECOND)])
    (one,) = found.differences
    first, second = np.array(FIRST, bool), np.array(SECOND, bool)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    assert (one.counts.only_first, one.counts.only_second) == (b, c) and b != c
    assert one.counts.both + one.counts.neither == 200 - b - c and one.pairs == 200
    assert one.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue)
    assert one.test == "exact McNemar" and one.main
    assert one.value == pytest.approx((c - b) / 200)
    error = np.std(second.astype(float) - first) / np.sqrt(200)
    assert one.interval.low == pytest.approx(one.value - 1.96 * error, abs=0.15 * error)
    assert not found.refused and not found.warnings


def test_other_metrics_by_a_paired_bootstrap(compared):
    first = RANDOM.random(120)
    second = first + RANDOM.normal(0.02, 0.1, 120)  # a difference that only pairs show
    (one,) = compared([outcome(first, "f1")], [outcome(second, "f1")]).differences
    expected = stats.bootstrap((second - first,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    low, high = expected.confidence_interval
    assert one.test == "paired bootstrap" and one.counts is None
    assert (one.interval.low, one.interval.high) == pytest.approx((low, high), abs=0.06 * (high - low))
    assert one.p_value == pytest.approx(stats.ttest_rel(second, first).pvalue, abs=0.02)
    assert stats.ttest_ind(second, first).pvalue > 0.3


def test_differences_of_a_perplexity(compared):
    first, second = RANDOM.normal(-3, 1, 90), RANDOM.normal(-3, 1, 90)
    given = [
        outcome(
            v, "perplexity", metrics={"perplexity": float(np.exp(-v.mean()))}, aggregate={"perplexity": "exp(-mean)"}
        )
        for v in (first, second)
    ]
    (one,) = compared(given[:1], given[1:]).differences
    assert one.value == pytest.approx(np.exp(-second.mean()) - np.exp(-first.mean()))
    assert one.interval.low < one.value < one.interval.high


def test_equal_results_do_not_differ(compared):
    (one,) = compared([outcome(FIRST)], [outcome(FIRST)]).differences
    assert one.value == 0 and one.p_value == 1 and not one.significant
    assert (one.interval.low, one.interval.high) == (0, 0)


def test_only_common_examples_are_paired_whatever_their_order(compared):
    longer = outcome(SECOND)
    found = compared([outcome(FIRST[:150])], [replace(longer, examples=longer.examples[::-1])])
    (one,) = found.differences
    assert one.pairs == 150 and one.second == pytest.approx(np.mean(SECOND[:150]))
    (warning,) = found.warnings
    assert "the 150 common examples are compared; a has 0 more, b has 50 more" in warning


def test_other_prompts_protocols_and_data_are_warned_of(compared):
    second = outcome(SECOND)
    examples = [replace(one, prompt="new") if i < 3 else one for i, one in enumerate(second.examples)]
    second = replace(second, examples=examples, source={"test.jsonl": "1"})
    found = compared([replace(outcome(FIRST), source={"test.jsonl": "0"})], [second], ("gpt3", "lm-eval"))
    assert len(found.differences) == 1
    text = "\n".join(found.warnings)
    assert "a has gpt3, b has lm-eval" in text
    assert "3 of 200 prompts differ" in text
    assert "the content of test.jsonl differs" in text


def other_targets(given: TaskOutcome) -> TaskOutcome:
    return replace(given, examples=[replace(one, target="c") for one in given.examples])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (outcome(SECOND, version="2"), "version 1 in a and 2 in b"),
        (outcome(SECOND, shots=2), "different numbers of shots: a has 1, b has 2"),
        (outcome(SECOND, task="plants"), "animals is in a only"),
        (outcome(SECOND, metric="f1"), "no metric is in both: a has accuracy, b has f1"),
        (other_targets(outcome(SECOND)), "200 of 200 examples with the same id have different right answers"),
        (replace(outcome(FIRST), examples=[outcome(FIRST).examples[0]] * 2), "several examples of b have the same id"),
    ],
    ids=["version", "shots", "task", "metric", "targets", "ids"],
)
def test_what_cannot_be_compared_is_refused(compared, second, message):
    found = compared([outcome(FIRST)], [second])
    assert not found.differences
    assert message in "\n".join(found.refused)
    assert f"not compared: {found.refused[0]}" in as_text(found)


def test_a_metric_that_no_example_has_is_refused(compared):
    given = [outcome(values, metrics={"accuracy": np.mean(values), "mcc": 0.5}) for values in (FIRST, SECOND)]
    found = compared(given[:1], given[1:])
    assert [one.metric for one in found.differences] == ["accuracy"]
    assert "mcc has no value for each example" in found.refused[0]


def test_table_for_a_terminal(compared):
    lines = as_text(compared([outcome(FIRST, task="x\x1b[31m")], [outcome(SECOND, task="x\x1b[31m")])).splitlines()
    assert lines[:2] == ["first: a", "second: b"]
    words = lines[3].split()
    assert words[0] == "x\N{REPLACEMENT CHARACTER}[31m" and words[1:3] == ["1", "accuracy"]
    assert words[3:6] == [f"{np.mean(FIRST):.4f}", f"{np.mean(SECOND):.4f}", f"{np.mean(SECOND) - np.mean(FIRST):+.4f}"]
    assert words[-1] == "200" and lines[4].startswith("* p below 0.05")
