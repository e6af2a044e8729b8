"""The command line of generation: a checkpoint in, the library's completions out, on one rank and on two."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from megagpt.cli import generate
from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.code_tokens import grow_for_code
from megagpt.data.fim import fim_prompt
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import CheckpointError, ConfigError, DataError
from megagpt.model.generation import Generator
from megagpt.parallel import launch
from megagpt.stages.weights import load_model
from tests.runs import save_random_run

ROOT = Path(__file__).parents[2]
TEXT = "the cat sat on the mat and the dog on the log; naïve café 中文.\n" * 5


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """The folder of a run that saved its first, random weights."""
    tokenizer = grow_for_code(train_tokenizer([TEXT], 280), longest_run=4)
    size = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "sequence_length": 32}
    config = Config(model=ModelConfig(**size, init_std=0.3), optim=OptimConfig(precision="fp32"))
    return save_random_run(tmp_path_factory.mktemp("run"), config, tokenizer)


@pytest.fixture
def tool(run_dir, megagpt):
    return partial(megagpt, "generate", "--checkpoint", run_dir)


def test_streamed_text_equals_json_and_settings_arrive(tool):
    options = ["--max-new-tokens", "12", "--temperature", "0.9", "--top-k", "20", "--top-p", "0.9", "--seed", "4"]
    (line,) = tool("--prompt", "the cat", "--json", *options).splitlines()
    completion = json.loads(line)
    assert completion.keys() == {"prompt", "text", "tokens", "logprobs", "finish_reason"}
    assert len(completion["tokens"]) == len(completion["logprobs"]) == 12
    assert tool("--prompt", "the cat", *options) == "the cat" + completion["text"] + "\n"
    greedy = json.loads(tool("--prompt", "the cat", "--json", "--max-new-tokens", "12", "--greedy"))
    assert greedy["tokens"] != completion["tokens"]
    stop = completion["text"][3:5]
    cut = json.loads(tool("--prompt", "the cat", "--json", *options, "--stop", stop, "--stop", "\0never"))
    assert (cut["text"], cut["finish_reason"]) == (completion["text"].split(stop)[0], "stop")


def test_several_prompts_from_arguments_and_files(tool, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the\\ndog"}\n\n{"prompt": "中", "id": 7}\n')
    (tmp_path / "prompts.txt").write_text("a log\n\nthe mat\n")
    arguments = ["--json", "--num-samples", "2", "--max-new-tokens", "3"]
    lines = tool("--prompt", "x", "--prompt-file", str(tmp_path / "prompts.jsonl"), *arguments).splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["x", "x", "the\ndog", "the\ndog", "中", "中"]
    assert json.loads(lines[0])["tokens"] != json.loads(lines[1])["tokens"]
    text = tool("--prompt-file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "3", "--greedy")
    assert text.startswith("a log")
    assert "\nthe mat" in text


def test_an_instruction_is_refused_without_roles_and_beside_a_suffix(tool):
    with pytest.raises(DataError, match=r"<\|system\|>.*--add chat"):
        tool("--prompt", "the cat", "--instruction", "Fix it.")
    with pytest.raises(ConfigError, match="give only one"):
        tool("--prompt", "the cat", "--instruction", "Fix it.", "--suffix", "x")


def test_suffix_asks_for_what_is_between(tool, run_dir, monkeypatch):
    tokenizer = Tokenizer.load(run_dir / "tokenizer.json")
    asked, stream = [], Generator.stream
    monkeypatch.setattr(
        Generator, "stream", lambda self, prompts, *how: asked.append(prompts) or stream(self, prompts, *how)
    )
    arguments = ["--prompt", "the cat ", "--suffix", " mat\n", "--max-new-tokens", "5"]
    completion = json.loads(tool(*arguments, "--json"))
    assert (completion["prompt"], completion["suffix"]) == ("the cat ", " mat\n")
    assert tool(*arguments) == f"the cat {completion['text']} mat\n\n"
    assert asked == [[fim_prompt(tokenizer, "the cat ", " mat\n")]] * 2
    several = tool(*arguments, "--num-samples", "2").split(f"{'-' * 40}\n")
    assert several[0] == f"the cat {completion['text']} mat\n\n"
    assert len(several) == 3
    assert "suffix" in json.loads(tool("--prompt", "", "--suffix", "", "--json", "--max-new-tokens", "1"))


def test_suffix_comes_in_an_order_that_was_trained(run_dir):
    config, engine, tokenizer = load_model(run_dir, ParallelConfig())
    for rate, spm in ((0.0, False), (0.5, True), (1.0, True)):
        trained = replace(config, data=replace(config.data, fim_spm_rate=rate))
        prompt = Generator(engine.modules, trained, tokenizer).prompts.fim_prompt("the cat", " mat")
        assert prompt == fim_prompt(tokenizer, "the cat", " mat", spm)
    launch.shutdown()


def test_nothing_new_still_shows_what_was_given(tool, monkeypatch):
    monkeypatch.setattr(Generator, "stream", lambda *_: iter(()))
    assert tool("--prompt", "the cat", "--suffix", " sat") == "the cat sat\n"
    assert tool("--prompt", "the cat") == "the cat\n"


def test_interactive(tool, monkeypatch):
    typed = iter(["the cat", "the " * 40, "the dog"])

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    out = tool("--greedy", "--max-new-tokens", "4")
    assert out.startswith("the cat")
    assert "at most 31" in out
    assert "\nthe dog" in out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--prompt", "a", "--top-p", "2"], ConfigError, "top_p is 2.0"),
        (["--prompt", "a", "--num-samples", "0"], ConfigError, "--num-samples"),
        (["--prompt", "the " * 40], DataError, "at most 31"),
        (["--prompt-file", "absent.txt"], DataError, "absent.txt"),
        (["--prompt", "a", "--tensor-parallel-size", "2"], ConfigError, "needs 2 ranks, not 1"),
        (["--prompt", "a", "--checkpoint", "absent"], CheckpointError, "absent"),
        ([], ConfigError, "--prompt"),
    ],
)
def test_what_is_wrong_is_said(tool, arguments, error, message):
    with pytest.raises(error, match=message):
        tool(*arguments)


@pytest.mark.parametrize("content", ["not json\n", '{"text": "a"}\n', '{"prompt": 3}\n', "[1]\n", "", b"\xff"])
def test_bad_prompt_files_are_named(tmp_path, content):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"prompts\.jsonl"):
        generate.read_prompts(path)


def test_two_ranks_print_once_what_one_prints(run_dir, tool):
    arguments = ["--prompt", "the cat", "--prompt", "a", "--json", "--max-new-tokens", "12"]
    expected = [json.loads(line)["tokens"] for line in tool(*arguments).splitlines()]
    command = [sys.executable, "-m", "megagpt.cli", "generate", "--nproc-per-node", "2", "--checkpoint", str(run_dir)]
    command += [*arguments, "--pipeline-parallel-size", "2"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["tokens"] for line in done.stdout.splitlines()] == expected
