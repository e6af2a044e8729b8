"""An evaluation from the model or a file to the result: what it holds, how it goes on, what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.coding import evaluate_code, summarize
from megagpt.evaluate.sandbox import SandboxRunner
from megagpt.evaluate.settings import CodeEvaluation
from megagpt.model.generation import Completion

TEST = "def check(candidate):\n    assert candidate(3) == 4\n"


class FakeGenerator:
    """Stands for a model that answers right in every second sample of a prompt."""

    window = 40

    class tokenizer:
        @staticmethod
        def encode(text: str) -> list[int]:
            return list(text.encode())

    def __init__(self) -> None:
        self.calls, self.settings = [], None

    def generate(self, prompts, settings):
        self.calls.append(["".join(map(chr, prompt)) for prompt in prompts])
        self.settings = settings
        bodies = ["    return x + 1", "    return x"]
        return [Completion(bodies[number % 2], [], [], "stop") for number in range(len(prompts))]


@pytest.fixture
def files(tmp_path) -> Path:
    problems = [
        {"task_id": f"T/{number}", "prompt": f"def f{number}(x):\n", "canonical_solution": "    return x + 1\n"}
        | {"entry_point": f"f{number}", "test": TEST}
        for number in range(5)
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    return tmp_path


def settings(files: Path, **changes) -> CodeEvaluation:
    given = {"task": "humaneval", "data": files / "set.jsonl", "output": files / "out", "sandbox": "none", "workers": 2}
    if "completions" not in changes:
        given |= {"checkpoint": files / "model", "n": 4, "k": (1, 2), "batch_size": 8}
    return CodeEvaluation(**given | changes)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_completions_are_generated_tested_and_counted(files):
    generator = FakeGenerator()
    result = evaluate_code(settings(files), generator)
    assert [len(call) for call in generator.calls] == [8, 8, 4]  # whole problems, as many as a batch holds
    assert generator.calls[2] == ["def f4(x):\n"] * 4
    assert (generator.settings.temperature, generator.settings.top_p) == (0.2, 0.95)
    assert generator.settings.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert result == json.loads((files / "out/result.json").read_text())
    assert result["counts"] == {"problems": 5, "problems_solved": 5, "samples": 20, "samples_passed": 10}
    assert result["pass_at_k"]["1"]["value"] == pytest.approx(0.5)
    assert result["pass_at_k"]["2"]["value"] == pytest.approx(5 / 6)
    assert result["sandbox"] == "none"
    assert result["sampler"] == {"temperature": 0.2, "top_p": 0.95, "max_new_tokens": 512, "seed": 0}
    assert result["versions"]["torch"] == torch.__version__
    for value in (result["data"]["sha256"], result["prompts_sha256"], result["checkpoint"]["manifest_sha256"]):
        assert len(value) == 64
    samples = lines(files / "out/samples.jsonl")
    assert len(samples) == 20
    wrong = next(sample for sample in samples if not sample["passed"])
    assert wrong["completion"] == "    return x"
    assert wrong["reason"] == "AssertionError"


def test_interrupted_work_goes_on_and_ends_the_same(files, monkeypatch):
    whole = evaluate_code(settings(files, output=files / "whole"), FakeGenerator())

    class Stops(FakeGenerator):
        def generate(self, prompts, settings):
            if self.calls:
                raise KeyboardInterrupt
            return super().generate(prompts, settings)

    with pytest.raises(KeyboardInterrupt):
        evaluate_code(settings(files), Stops())
    with (files / "out/completions.jsonl").open("a") as file:
        file.write('{"task_id": "T/2", "sam')  # half a line
    generator = FakeGenerator()
    evaluate_code(settings(files), generator)
    assert [len(call) for call in generator.calls] == [8, 4]
    tested = (files / "out/samples.jsonl").read_text().splitlines(keepends=True)
    (files / "out/samples.jsonl").write_text("".join(tested[:7]) + tested[7][:9])
    seen = []
    monkeypatch.setattr(SandboxRunner, "run", watched(SandboxRunner.run, seen))
    result = evaluate_code(settings(files), FakeGenerator())
    assert len(seen) == 13
    assert result == whole
    assert len(lines(files / "out/samples.jsonl")) == 20


def watched(call, seen: list):
    def run(self, job):
        seen.append(job)
        return call(self, job)

    return run


def test_another_evaluation_is_not_mixed_in(files):
    evaluate_code(settings(files), FakeGenerator())
    with pytest.raises(ConfigError, match="another sampler: choose another output"):
        evaluate_code(settings(files, temperature=0.8), FakeGenerator())


def test_prompt_that_does_not_fit_counts_as_failed(files):
    generator = FakeGenerator()
    generator.window = 11
    problems = lines(files / "set.jsonl")  # which even an empty completion solves
    solved = [problem | {"prompt": f"{problem['prompt']}    return x + 1\n"} for problem in problems]
    (files / "set.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in solved))
    result = evaluate_code(settings(files, k=(1,)), generator)
    assert result["pass_at_k"]["1"]["value"] == 0
    assert {line["finish_reason"] for line in lines(files / "out/completions.jsonl")} == {"prompt too long"}
    assert {line["reason"] for line in lines(files / "out/samples.jsonl")} == {"prompt too long"}


def test_completions_of_a_file(files):
    path = files / "given.jsonl"
    given = [{"task_id": f"T/{number}", "completion": f"    return x + {number % 2}"} for number in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in given))
    result = evaluate_code(settings(files, completions=path))
    assert result["pass_at_k"]["1"]["value"] == pytest.approx(0.4)
    assert result["sampler"] is None
    with pytest.raises(DataError, match="pass@2 needs 2 completions of every problem; 5 problems have fewer"):
        evaluate_code(settings(files, completions=path, k=(1, 2), output=files / "other"))
    path.write_text(json.dumps({"task_id": "X/1", "completion": ""}) + "\n")
    with pytest.raises(DataError, match="completion 1 is for 'X/1', which the data file does not hold"):
        evaluate_code(settings(files, completions=path, output=files / "third"))
    path.write_text(json.dumps({"task_id": "T/1"}) + "\n")
    with pytest.raises(DataError, match="no text in its field 'completion'"):
        evaluate_code(settings(files, completions=path, output=files / "fourth"))


def test_wrong_settings_are_refused(files):
    for changes, message in (
        ({"k": (1, 5)}, "pass@5 needs at least 5 completions of every problem, not n=4"),
        ({"k": (0,)}, "list of positive numbers"),
        ({"n": 0, "k": (1,)}, "n is 0"),
        ({"checkpoint": None}, "give either checkpoint"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings(files, **changes)


def test_one_problem_has_no_interval():
    found = summarize([{"task_id": "a", "passed": True}, {"task_id": "a", "passed": False}], (1,))
    assert found["pass_at_k"]["1"] == {"value": 0.5, "standard_error": None, "interval_95": None}
