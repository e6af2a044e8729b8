"""An evaluation from the model or a file to the result: what it holds, how it goes on, what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from megagpt.data.chat import grow_for_chat, role_ids
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.coding import evaluate_code, summarize
from megagpt.evaluate.sandbox import SandboxRunner, Verdict
from megagpt.evaluate.settings import CodeEvaluation
from megagpt.model.generation import Completion

TEST = "def check(candidate):\n    assert candidate(3) == 4\n"


NONE_TOO_LONG = {"prompts_too_long": 0}


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
    given["timeout"] = 120.0  # the machine may be busy
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
    assert (
        result["counts"] == {"problems": 5, "problems_solved": 5, "samples": 20, "samples_passed": 10} | NONE_TOO_LONG
    )
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
    with pytest.raises(ConfigError, match="different sampler: choose another output"):
        evaluate_code(settings(files, temperature=0.8), FakeGenerator())


def test_prompt_that_does_not_fit_counts_as_failed(files):
    generator = FakeGenerator()
    generator.window = 11
    problems = lines(files / "set.jsonl")  # which even an empty completion solves
    solved = [problem | {"prompt": f"{problem['prompt']}    return x + 1\n"} for problem in problems]
    (files / "set.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in solved))
    result = evaluate_code(settings(files, k=(1,)), generator)
    assert result["pass_at_k"]["1"]["value"] == 0
    assert (result["counts"]["samples"], result["counts"]["prompts_too_long"]) == (20, 20)
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
    with pytest.raises(DataError, match="jsonl:1: this completion is for 'X/1', which the data file does not hold"):
        evaluate_code(settings(files, completions=path, output=files / "third"))
    path.write_text(json.dumps({"task_id": "T/1"}) + "\n")
    with pytest.raises(DataError, match="jsonl:1: the field 'completion' has no text"):
        evaluate_code(settings(files, completions=path, output=files / "fourth"))


def test_fields_that_nobody_reads_are_named(files, caplog):
    path = files / "given.jsonl"
    given = [{"task_id": f"T/{number}", "completion": "", "model": "x"} for number in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in given) + "{broken\n")
    with pytest.raises(DataError, match=r"given\.jsonl:6: not JSON"):
        evaluate_code(settings(files, completions=path))
    path.write_text("".join(json.dumps(line) + "\n" for line in given))
    problems = [problem | {"stop_tokens": []} for problem in lines(files / "set.jsonl")]
    (files / "set.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    evaluate_code(settings(files, completions=path, output=files / "other"))
    for name, field in (("given", "model"), ("set", "stop_tokens")):
        assert f"{name}.jsonl: fields that are not read, with their records: {field} (5)" in caplog.text


def test_problems_whose_reference_fails_are_left_out_and_named(files, caplog):
    problems = lines(files / "set.jsonl")
    problems[1]["test"] = "import no_such_package\n" + TEST  # the tests cannot run
    problems[3]["canonical_solution"] = "    return x\n"  # the solution is wrong
    (files / "set.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    generator = FakeGenerator()
    result = evaluate_code(settings(files), generator)
    assert [call[0] for call in generator.calls] == ["def f0(x):\n", "def f4(x):\n"]  # 0 and 2 together
    assert result["counts"] == {"problems": 3, "problems_solved": 3, "samples": 12, "samples_passed": 6} | NONE_TOO_LONG
    assert result["pass_at_k"]["1"]["value"] == pytest.approx(0.5)
    reasons = {"T/1": "ModuleNotFoundError: No module named 'no_such_package'", "T/3": "AssertionError"}
    assert result["left_out"] == {"problems": 2, "reasons": reasons}
    assert result["data"]["problems"] == 5
    assert "T/1 is left out" in caplog.text and "no_such_package" in caplog.text
    verdicts = {line["task_id"]: line["passed"] for line in lines(files / "out/references.jsonl")}
    assert verdicts == {"T/0": True, "T/1": False, "T/2": True, "T/3": False, "T/4": True}
    given = files / "given.jsonl"
    completions = [{"task_id": f"T/{number}", "completion": "    return x + 1"} for number in range(5)]
    given.write_text("".join(json.dumps(line) + "\n" for line in completions))
    result = evaluate_code(settings(files, completions=given, output=files / "given"))
    assert result["counts"] == {"problems": 3, "problems_solved": 3, "samples": 3, "samples_passed": 3} | NONE_TOO_LONG
    assert result["pass_at_k"]["1"]["value"] == 1


def test_a_reference_that_fails_once_is_judged_again(files, monkeypatch):
    judged, run = [], SandboxRunner.run

    def slow_at_first(self, job):
        judged.append(job.program)
        return Verdict(False, "timed out", 9.0) if judged.count(job.program) == 1 else run(self, job)

    monkeypatch.setattr(SandboxRunner, "run", slow_at_first)
    assert evaluate_code(settings(files), FakeGenerator())["left_out"] == {"problems": 0, "reasons": {}}


def test_a_set_without_a_problem_that_can_be_judged_is_refused(files):
    problems = [problem | {"test": "import no_such_package\n" + TEST} for problem in lines(files / "set.jsonl")]
    (files / "set.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    with pytest.raises(DataError, match=r"no problem can be judged: .*no_such_package"):
        evaluate_code(settings(files), FakeGenerator())


def test_chat_takes_code_out_of_fences_and_says_so(files):
    tokenizer = grow_for_chat(train_tokenizer(["def f(x): Complete this Python function."], 300))

    class ChatGenerator(FakeGenerator):
        window = 1000

        def generate(self, prompts, settings):
            for prompt in prompts:
                assert (prompt[0], prompt[-1]) == (tokenizer.special_ids["<|user|>"], role_ids(tokenizer)["assistant"])
            self.calls.append([self.tokenizer.decode(prompt) for prompt in prompts])
            self.settings = settings
            name = self.calls[-1][0].split("def ")[1].split("(")[0]
            bodies = [
                f"Like this:\n\n```python\nimport math\n\n\ndef {name}(x):\n    return x + math.isqrt(1)\n```\nSee?",
                f"def {name}(x):\n    return x + 1\n",  # no fence
                "```\n    return x + 1\n```",  # goes on where the prompt ends
                "I do not know.",
            ]
            return [Completion(bodies[number], [], [], "end_of_text") for number in range(len(prompts))]

    generator = ChatGenerator()
    generator.tokenizer = tokenizer
    result = evaluate_code(settings(files, chat=True, batch_size=4), generator)
    assert generator.settings.stop == ()
    assert generator.calls[0][0].startswith("Complete this Python function.")
    assert generator.calls[0][0].endswith("```python\ndef f0(x):\n```")
    assert result["chat"] is True
    assert result["fences"] == {"with": 10, "responses": 20}
    assert result["counts"]["samples_passed"] == 15
    assert result["stop"] == []
    samples = lines(files / "out/samples.jsonl")
    assert {sample["sample"]: (sample["fenced"], sample["passed"]) for sample in samples} == {
        0: (True, True),
        1: (False, True),
        2: (True, True),
        3: (False, False),
    }
    assert "Like this" in next(sample["completion"] for sample in samples if sample["sample"] == 0)
    with pytest.raises(ConfigError, match="different prompts_sha256, chat"):
        evaluate_code(settings(files), FakeGenerator())
    with pytest.raises(ConfigError, match="humaneval_infilling has gaps"):
        settings(files, chat=True, task="humaneval_infilling")


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
    found = summarize([{"task_id": "a", "finish_reason": "stop", "passed": passed} for passed in (True, False)], (1,))
    assert found["pass_at_k"]["1"] == {"value": 0.5, "standard_error": None, "interval_95": None}
