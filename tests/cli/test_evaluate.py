"""The command line of the evaluation: its arguments, and a real model asked from end to end."""

import json

import pytest

from megagpt import cli
from megagpt.cli import evaluate
from megagpt.config.schema import Config, ModelConfig, OptimConfig
from megagpt.data.chat import grow_for_chat
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError
from tests.runs import save_random_run

NEEDED = ["task=humaneval", "data=set.jsonl", "output=out", "completions=given.jsonl"]


def test_arguments_become_settings():
    settings = evaluate.parse([*NEEDED, "k=[1,10]", "temperature=1e-1", "workers=3"])
    assert (settings.k, settings.temperature, settings.workers) == ((1, 10), 0.1, 3)
    assert evaluate.parse([*NEEDED, "k=2"]).k == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*NEEDED, "temprature=1"], "unknown key 'temprature'; did you mean temperature?"),
        ([*NEEDED, "k"], "'k' cannot be read as an override: write k=VALUE"),
        ([*NEEDED, "n=two"], "n is 'two': .*integer"),
        ([*NEEDED, "sandbox=off"], "sandbox is 'off': .*bwrap.*none"),
        ([*NEEDED, "task=mbpp"], "task is given twice"),
        (["task=humaneval"], "data, output must be given"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluate.parse(arguments)


def test_options_are_refused(capsys):
    assert cli.run(["evaluate", *NEEDED, "--k"]) == ConfigError.exit_code
    assert "No such option '--k'" in capsys.readouterr().err


def test_problems_that_cannot_be_judged_are_counted_and_named(tmp_path, megagpt):
    problem = {"prompt": "def f(x):\n", "canonical_solution": "    return 1\n", "entry_point": "f"}
    right = {"task_id": "right", "test": "def check(candidate):\n    assert candidate(3) == 1"}
    broken = {"task_id": "broken", "test": "import no_such_package"}
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(problem | one) + "\n" for one in (right, broken)))
    completions = [{"task_id": name, "completion": "    return 1"} for name in ("right", "broken")]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(one) + "\n" for one in completions))
    given = ["task=humaneval", f"data={tmp_path}/set.jsonl", f"completions={tmp_path}/given.jsonl", "sandbox=none"]
    out = megagpt("evaluate", *given, f"output={tmp_path}/out", "timeout=120")
    assert "1 of 1 samples passed, 1 problems" in out
    assert "1 problems left out of all figures, since their own reference solutions fail their tests:" in out
    assert "  broken: ModuleNotFoundError: No module named 'no_such_package'" in out


@pytest.mark.slow
def test_model_from_end_to_end(tmp_path, megagpt):
    tokenizer = train_tokenizer(["def f(x):\n    return x + 1\n"], 280)
    size = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "sequence_length": 64}
    save_random_run(tmp_path, Config(model=ModelConfig(**size), optim=OptimConfig(precision="fp32")), tokenizer)
    problem = {"task_id": "a", "prompt": "def f(x):\n", "canonical_solution": "    return 1\n", "entry_point": "f"}
    test = "def check(candidate):\n    assert candidate(3) == 1"
    (tmp_path / "set.jsonl").write_text(json.dumps(problem | {"test": test}) + "\n")
    given = [f"checkpoint={tmp_path}", f"data={tmp_path}/set.jsonl", f"output={tmp_path}/out", "task=humaneval"]
    given += ["n=3", "k=[1,3]", "max_new_tokens=8", "sandbox=none", "temperature=0.8"]
    assert "pass@3" in (out := megagpt("evaluate", *given))
    assert "unprotected" in out
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["counts"]["samples"] == 3
    assert result["checkpoint"]["folder"].endswith("step_00000001")


@pytest.mark.slow
def test_instructions_from_end_to_end(tmp_path, megagpt):
    tokenizer = grow_for_chat(train_tokenizer(["Say: cat dog", "Reverse: a b"], 270))
    size = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "sequence_length": 64}
    run = save_random_run(
        tmp_path / "run", Config(model=ModelConfig(**size), optim=OptimConfig(precision="fp32")), tokenizer
    )
    asked = ["--split", "validation", "--kinds", "copy,first", "--count", "6"]
    megagpt("data", "instructions", *asked, "--output-dir", tmp_path)
    given = ["task=instructions", f"data={tmp_path}/prompts.jsonl", f"checkpoint={run}", f"output={tmp_path}/out"]
    out = megagpt("evaluate", *given, "max_new_tokens=4", "show=3")
    assert len(out.splitlines()) == 3 + 3 + 1  # all and two kinds, three answers, the file
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["metrics"]["all"]["instructions"] == 6


@pytest.mark.slow
def test_embeddings_from_end_to_end(tmp_path, megagpt):
    tokenizer = train_tokenizer(["the cat sat on the mat", "a dog {runs} [far]"], 280)
    size = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "sequence_length": 32, "head": "embedding"}
    config = Config(model=ModelConfig(**size), optim=OptimConfig(precision="fp32"))
    save_random_run(tmp_path / "run", config, tokenizer)
    lines = ["the cat,the cat,5", "a dog,the cat,1", "far mat " * 20 + ",dog,0"]
    (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
    given = ["task=sts", f"checkpoint={tmp_path}/run", f"data={tmp_path}/set.csv", f"output={tmp_path}/out"]
    assert "model     spearman" in megagpt("evaluate", *given, "dimensions=8")
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["checkpoint"]["folder"].endswith("step_00000001")
    assert result["metrics"]["model"]["spearman"] >= 0.5  # the equal sentences are the most similar
    with pytest.raises(ConfigError, match="dimensions is 17"):
        cli.run(["evaluate", *given[:3], f"output={tmp_path}/other", "dimensions=17"])


def test_a_model_that_generates_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text("a,b,1\nc,d,2\n")
    save_random_run(
        tmp_path / "run",
        Config(model=ModelConfig(num_layers=1, hidden_size=16, num_attention_heads=2, sequence_length=32)),
        train_tokenizer(["a b c d"], 270),
    )
    with pytest.raises(ConfigError, match="has a tokens head"):
        cli.run(
            ["evaluate", "task=sts", f"checkpoint={tmp_path}/run", f"data={tmp_path}/set.csv", f"output={tmp_path}/o"]
        )
