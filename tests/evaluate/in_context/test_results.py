"""What an evaluation in context leaves in its folder, and that interrupted ones go on from it."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from megagpt.checkpoint.format import dump_manifest
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.in_context.outcomes import ExampleOutcome, TaskOutcome
from megagpt.evaluate.in_context.results import (
    describe_checkpoint,
    finished,
    is_result,
    read_results,
    read_several,
    save_outcome,
    write_results,
)
from megagpt.evaluate.in_context.summary import summarize

HOSTILE = "</script>\x00 \u202e \u2028\n\t" + "x" * 10_000
REQUEST = {"protocol": "gpt3", "tasks": ["animals"], "seeds": {"shots": 7}, "checkpoint": None}


def example(number: int, right: float, **fields) -> ExampleOutcome:
    values = {
        "id": str(number),
        "prompt": f"Q: what is {number}?\nA:",
        "shots": 2,
        "choices": (" a", " b"),
        "scores": (-1.25, -2.5),
        "answer": " a",
        "target": " a" if right else " b",
        "metrics": {"accuracy": right},
    }
    return ExampleOutcome(**values | fields)


def outcome(rights=(1, 1, 1, 0), **fields) -> TaskOutcome:
    examples = [example(number, float(right)) for number, right in enumerate(rights)]
    values = {
        "task": "animals",
        "shots": 2,
        "metrics": {"accuracy": float(np.mean(rights))},
        "main_metric": "accuracy",
        "higher_is_better": True,
        "chance": 0.5,
        "examples": examples,
    }
    return TaskOutcome(**values | fields)


def test_what_is_written_is_read_back(tmp_path):
    odd = [
        example(0, 1.0, prompt=HOSTILE, scores=(-math.inf, -0.1), clean=True),
        example(1, 0.0, target="lone \ud800", choices=(), scores=(), clean=False),
    ]
    given = outcome(task="a/b:c", examples=odd, metrics={"accuracy": 0.5, "perplexity": math.inf}, notes=["so"])
    request = REQUEST | {"checkpoint": {"step": 10, "tokens": 5000, "parameters": 124}}
    written = write_results(tmp_path, request, [given, outcome()], layout={"tensor": 2}, work={"seconds": 1.5})
    read = read_results(tmp_path)
    assert (read.tasks, read.about) == (written.tasks, written.about)
    assert read.outcome(read.tasks[0]) == given
    assert finished(tmp_path) == {("a/b:c", 2): given, ("animals", 2): outcome()}
    assert read.about["protocol"] == "gpt3" and read.about["layout"] == {"tensor": 2} and read.checkpoint["step"] == 10
    assert {"megagpt", "torch", "numpy", "lm-eval", "sacrebleu"} <= read.about["versions"].keys()
    assert read.tasks[0].metrics["perplexity"].value is None
    # Any reader of JSON understands the files.
    for path in tmp_path.rglob("*.json*"):
        for line in path.read_text().split("\n")[:-1] if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=pytest.fail)


def test_figures_of_a_task():
    stats = pytest.importorskip("scipy.stats")
    rights = [1] * 45 + [0] * 15
    found = summarize(outcome(rights))
    expected = stats.binomtest(45, 60).proportion_ci(0.95, "exact")
    assert found.main.value == 0.75 and found.examples == 60 and found.main.interval.method == "exact binomial"
    assert (found.main.interval.low, found.main.interval.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert found.excludes_chance is True
    assert summarize(outcome(rights, chance=0.7)).excludes_chance is False
    assert summarize(outcome(rights, chance=0.9)).excludes_chance is True  # worse than chance is not chance either
    assert summarize(outcome(rights, chance=None)).excludes_chance is None


def test_graded_metrics_and_perplexities_are_bootstrapped():
    random = np.random.default_rng(0)
    f1, logs = random.random(80).round(2) + 0.01, random.normal(-3, 1, 80)
    examples = [example(i, 1, metrics={"f1": f1[i], "perplexity": logs[i]}) for i in range(80)]
    metrics = {"f1": float(f1.mean()), "perplexity": float(np.exp(-logs.mean()))}
    how = {"perplexity": "exp(-mean)"}
    given = outcome(metrics=metrics, main_metric="f1", chance=None, examples=examples, aggregate=how)
    found = summarize(given)
    error = f1.std() / np.sqrt(80)
    assert found.main.interval.method == "bootstrap"
    assert found.main.interval.low == pytest.approx(f1.mean() - 1.96 * error, abs=0.2 * error)
    logs_error = logs.std() / np.sqrt(80)
    high = found.metrics["perplexity"].interval.high
    assert high == pytest.approx(np.exp(-logs.mean() + 1.96 * logs_error), rel=0.05)
    assert summarize(given) == found != summarize(given, seed=1)


def test_interval_of_bleu_is_of_corpora():
    sacrebleu = pytest.importorskip("sacrebleu")
    random = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "far", "away", "from", "it"]
    pairs = []
    for _ in range(40):
        target = list(random.choice(words, 9))
        pairs.append((" ".join(w if random.random() < 0.8 else "so" for w in target), " ".join(target)))
    examples = [example(i, 1, answer=a, target=t, metrics={}) for i, (a, t) in enumerate(pairs)]

    def score(rows):
        return sacrebleu.corpus_bleu([pairs[i][0] for i in rows], [[pairs[i][1] for i in rows]]).score

    value = score(range(40))
    given = outcome(
        metrics={"bleu": value}, main_metric="bleu", chance=None, examples=examples, aggregate={"bleu": "corpus"}
    )
    interval = summarize(given).main.interval
    low, high = np.quantile([score(random.integers(0, 40, 40)) for _ in range(300)], [0.025, 0.975])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    with pytest.raises(KeyError):  # a function that is given comes first
        summarize(given, corpus={"bleu": lambda examples: {}["no"]})
    other = summarize(replace(given, metrics={"bleu": value + 1}))
    assert other.main.interval is None and "bleu has no interval" in other.notes[0]


def test_clean_examples_have_figures_of_their_own():
    examples = [example(i, float(i < 3), clean=i % 2 == 0) for i in range(8)]
    found = summarize(outcome(examples=examples, metrics={"accuracy": 3 / 8})).clean
    assert found.examples == 4 and found.metrics["accuracy"].value == 0.5  # 0 and 2 of 0, 2, 4, 6
    assert summarize(outcome()).clean is None
    dirty = [example(0, 1.0, clean=False)]
    assert summarize(outcome(examples=dirty, metrics={"accuracy": 1.0})).clean.examples == 0


def test_prompts_have_a_hash_and_shots_are_counted():
    examples = [example(0, 1.0, prompt="ä", shots=2), example(1, 1.0, prompt="b", shots=1)]
    found = summarize(outcome(examples=examples, metrics={"accuracy": 1.0}))
    assert found.prompts_sha256 == hashlib.sha256(b"2\n\xc3\xa41\nb").hexdigest()
    assert (found.fewest_shots, found.mean_shots) == (1, 1.5)
    backwards = summarize(outcome(examples=examples[::-1], metrics={"accuracy": 1.0}))
    assert backwards.prompts_sha256 != found.prompts_sha256


def test_only_whole_outcomes_are_finished(tmp_path):
    assert finished(tmp_path) == {}
    save_outcome(tmp_path, outcome())
    save_outcome(tmp_path, outcome(shots=0))
    (tmp_path / "examples" / "animals_0shot.json").unlink()  # as if interrupted before it
    assert finished(tmp_path) == {("animals", 2): outcome()}
    assert not is_result(tmp_path)
    path = tmp_path / "examples" / "animals_2shot.jsonl"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(DataError, match="has 3 examples, not 4"):
        finished(tmp_path)
    path.write_text('{"id": "0"}\n')
    with pytest.raises(DataError, match=r"animals_2shot\.jsonl:1: "):
        finished(tmp_path)


def test_what_is_said_of_a_checkpoint(tmp_path):
    folder = tmp_path / "runs" / "mine" / "checkpoints" / "step_00000030"
    folder.mkdir(parents=True)
    files = {name: {"size": 1, "sha256": "0" * 64} for name in ("index.json", "state.json")}
    content = {"format": 1, "step": 30, "run": "mine", "files": files, "config": {"model": {"name": "tiny"}}}
    (folder / "manifest.json").write_text(dump_manifest(content))
    (folder / "state.json").write_text('{"step": 30, "tokens": 9000}')
    found = describe_checkpoint(folder, parameters=123)
    assert found.pop("manifest_sha256") == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert found == {
        "folder": str(folder),
        "run": "mine",
        "model": "tiny",
        "step": 30,
        "tokens": 9000,
        "parameters": 123,
    }


def test_a_task_comes_once(tmp_path):
    with pytest.raises(ConfigError, match="animals with 2 shots was evaluated twice"):
        write_results(tmp_path, REQUEST, [outcome(), outcome()])


@pytest.mark.parametrize("text", [None, "{", "[]", '{"kind": "in_context"}', '{"kind": "in_context", "results": [{}]}'])
def test_what_is_no_result_is_refused(tmp_path, text):
    if text:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(DataError, match=r"result\.json"):
        read_results(tmp_path)


def test_results_are_named_by_what_differs(tmp_path):
    folders = [tmp_path / "runs" / name / "in_context" for name in ("a", "b")]
    for folder in folders:
        write_results(folder, REQUEST, [outcome()])
        assert is_result(folder)
    assert [one.name for one in read_several(folders)] == ["a", "b"]
    assert [one.name for one in read_several(folders[:1])] == ["in_context"]
    inner = folders[0] / "again"
    write_results(inner, REQUEST, [outcome()])
    assert len({one.name for one in read_several([folders[0], inner])}) == 2
    with pytest.raises(ConfigError, match="twice"):
        read_several([folders[0], folders[0]])
