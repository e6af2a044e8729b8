"""`megagpt evaluate tasks=...`: a real model asked from end to end, on one rank and on two, beside lm-eval's `hf`."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from megagpt import cli
from megagpt.checkpoint.convert.convert import convert
from megagpt.cli import evaluate, in_context
from megagpt.config.schema import Config, OptimConfig
from megagpt.errors import CheckpointError, ConfigError, DataError
from megagpt.evaluate.in_context.results import read_results
from megagpt.evaluate.settings import TasksEvaluation
from tests.evaluate.in_context.peers import GPT2, tokenizer
from tests.runs import save_random_run

WORDS = ["fox", "dog", "cat", "mat", "hay", "water", "horse", "farmer"]
CHOICE = """
task: animals
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/test.jsonl, train: {folder}/train.jsonl}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "Question: {{{{question}}}}?\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
metadata: {{version: 2.0, chance: 0.25}}
"""
FIXED = CHOICE.replace("task: animals", "task: fixed\nnum_fewshot: 0")


def documents(count: int, begin: int) -> str:
    rows = [
        {
            "question": f"what does the {WORDS[n % 8]} give to the {WORDS[n // 8 % 8]} ({n})",
            "choices": [WORDS[(n * 3 + place) % 8] for place in range(4)],
            "label": n % 4,
        }
        for n in range(begin, begin + count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with random weights, and two tasks."""
    folder = tmp_path_factory.mktemp("in_context")
    (folder / "test.jsonl").write_text(documents(21, 0))
    (folder / "train.jsonl").write_text(documents(12, 100))
    (folder / "animals.yaml").write_text(CHOICE.format(folder=folder))
    (folder / "fixed.yaml").write_text(FIXED.format(folder=folder))
    config = Config(model=GPT2, optim=OptimConfig(precision="fp32"))
    save_random_run(folder / "run", config, tokenizer(), noise=0.2)
    return folder


def words(folder: Path, output: str, *more: str, task: str = "animals") -> list[str]:
    given = [f"tasks=[{folder}/{task}.yaml]", f"output={folder}/{output}", *more]
    if not any(text.startswith("huggingface=") for text in more):
        given.append(f"checkpoint={folder}/run")
    return ["evaluate", *given]


def figures(folder: Path) -> dict:
    return {
        (task.task, task.shots): {
            e.id: (e.prompt, e.scores, e.answer, e.metrics) for e in result.outcome(task).examples
        }
        for result in [read_results(folder)]
        for task in result.tasks
    }


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, examples in expected.items():
        assert found[key].keys() == examples.keys()
        for name, (prompt, scores, answer, metrics) in examples.items():
            assert found[key][name][0] == prompt
            assert found[key][name][1] == pytest.approx(scores, abs=1e-4)
            assert found[key][name][2:] == (answer, metrics)


@pytest.mark.parametrize("protocol", ["lm-eval", "gpt3"])
def test_two_ranks_and_transformers_find_what_one_rank_does(folder, megagpt, protocol):
    asked = ["shots=[0,2]", f"protocol={protocol}"]
    out = megagpt(*words(folder, f"one_{protocol}", *asked))
    assert "animals" in out and "2 shots" in out and "(chance 0.250)" in out
    one = figures(folder / f"one_{protocol}")
    assert set(one) == {("animals", 0), ("animals", 2)} and len(one["animals", 2]) == 21
    result = json.loads((folder / f"one_{protocol}" / "result.json").read_text())
    assert result["checkpoint"]["folder"].endswith("step_00000001") and result["protocol"] == protocol
    if not (folder / "hf").exists():
        convert(folder / "run", folder / "hf", "huggingface", None, True, None)
    for name, more in (
        ("data", ["--nproc-per-node", "2"]),
        ("tensor", ["tensor_parallel_size=2", "--nproc-per-node", "2"]),
        ("hf", [f"huggingface={folder}/hf"]),
    ):
        command = words(folder, f"{name}_{protocol}", *asked, *more)
        done = subprocess.run([sys.executable, "-m", "megagpt.cli", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("result.json") == 1  # one rank speaks
        assert "it/s" not in done.stderr  # lm-eval's bars count in "it"
        same(figures(folder / f"{name}_{protocol}"), one)


def test_what_is_finished_stays_when_the_same_command_goes_on(folder, megagpt, monkeypatch):
    line, said = in_context.line, []

    def interrupt(outcome):
        said.append(outcome.shots)
        if len(said) == 2:
            raise KeyboardInterrupt
        return line(outcome)

    asked = words(folder, "stopped", "shots=[0,1,2]", "limit=5")
    monkeypatch.setattr(in_context, "line", interrupt)
    with pytest.raises(Exception, match="the same command goes on"):
        cli.run(asked)
    monkeypatch.setattr(in_context, "line", line)
    out = megagpt(*asked)
    assert out.count("finished earlier") == 2
    megagpt(*words(folder, "whole", "shots=[0,1,2]", "limit=5"))
    same(figures(folder / "stopped"), figures(folder / "whole"))
    with pytest.raises(ConfigError, match="different limit"):
        cli.run(words(folder, "stopped", "shots=[0,1,2]", "limit=6"))


def test_a_prompt_longer_than_the_context_is_told(folder, megagpt):
    out = megagpt(*words(folder, "long", "shots=[12]", "limit=3", "protocol=gpt3"))
    assert "3 of 3 prompts have" in out and "instead of 12" in out
    out = megagpt(*words(folder, "cut", "shots=[12]", "limit=3"))
    assert "12 of 12 requests do not fit the context: they lose their beginnings" in out


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["shots=[0,0]"], ConfigError, r"shots is \[0, 0\]; it must be a list of different numbers"),
        (["shots=[-1]"], ConfigError, r"shots is \[-1\]"),
        (["shots=[13]"], ConfigError, r"task animals has 12 examples to draw from, too few for shots=\[13\]"),
        (["shots=five"], ConfigError, "shots is 'five': .* valid integer"),
        (["tasks=[]"], ConfigError, "tasks is empty: name at least one"),
        (["tasks="], ConfigError, "tasks is empty: name at least one"),
        (
            ["tasks=[lambada]"],
            ConfigError,
            "task lambada: its examples are read from files: give their folder with data=FOLDER",
        ),
        (["tensor_parallel_size=2"], ConfigError, "2"),
        (["protocol=gpt4"], ConfigError, "protocol is 'gpt4'"),
        (["limit=0"], ConfigError, "limit is 0"),
        (["clean=somewhere"], ConfigError, "clean=... needs protocol=gpt3"),
    ],
)
def test_what_cannot_be_asked_is_refused(folder, more, error, message):
    given = {text.partition("=")[0]: text for text in [*words(folder, "refused"), *more]}
    with pytest.raises(error, match=message):
        cli.run(list(given.values()))


def test_a_task_that_has_no_demonstrations_is_not_given_some(folder, megagpt, tmp_path):
    for protocol in ("lm-eval", "gpt3"):
        given = words(folder, "fixed", "shots=[0,2]", f"protocol={protocol}", task="fixed")[:-1]
        with pytest.raises(ConfigError, match=r"task fixed is defined without demonstrations.*shots=\[0\]"):
            cli.run([*given, f"checkpoint={tmp_path}/absent"])  # told before a model is looked for
    assert "0 shots" in megagpt(*words(folder, "fixed_0", task="fixed"))


WRITTEN = """
task: written
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/test.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[label]}}}}"
filter_list:
  - name: first
    filter:
      - function: take_first
"""


def test_a_task_that_gpt3s_protocol_cannot_ask_is_refused_before_the_model_is_loaded(folder, tmp_path):
    (folder / "written.yaml").write_text(WRITTEN.format(folder=folder))
    given = words(folder, "written", "protocol=gpt3", task="written")[:-1]
    with pytest.raises(ConfigError, match="written"):
        cli.run([*given, f"checkpoint={tmp_path}/absent"])


def test_missing_things_are_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="there is no task animls"):
        cli.run(["evaluate", "tasks=[animls]", f"checkpoint={folder}/run", f"output={tmp_path}/o"])
    with pytest.raises(DataError, match="hellaswag"):
        cli.run(
            ["evaluate", "tasks=[hellaswag]", f"data={tmp_path}", f"checkpoint={folder}/run", f"output={tmp_path}/o"]
        )
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        cli.run([*words(folder, "o")[:-1], f"checkpoint={tmp_path}"])
    scoring = Config(model=replace(GPT2, head="scalar"), optim=OptimConfig(precision="fp32"))
    save_random_run(tmp_path / "reward", scoring, tokenizer())
    with pytest.raises(ConfigError, match="generates no text"):
        cli.run([*words(folder, "o")[:-1], f"checkpoint={tmp_path}/reward"])


def test_settings():
    given = ["tasks=a", "output=o", "checkpoint=c"]
    settings = evaluate.parse([*given, "shots=4"])
    assert isinstance(settings, TasksEvaluation) and (settings.tasks, settings.shots) == (("a",), (4,))
    with pytest.raises(ConfigError, match=r"give either checkpoint=.* or huggingface="):
        evaluate.parse(given[:2])
    with pytest.raises(ConfigError, match="unknown key 'shot'; did you mean shots"):
        evaluate.parse([*given, "shot=4"])
