"""`megagpt chat` through a pipe, on a checkpoint of random weights."""

import io
import sys
from pathlib import Path

import pytest

from megagpt import cli
from megagpt.config.schema import Config, ModelConfig, OptimConfig
from megagpt.data.chat import grow_for_chat
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, DataError
from tests.runs import save_random_run

TEXT = "the cat sat on the mat and the dog on the log.\n" * 5


def make_run(folder: Path, with_roles: bool) -> Path:
    """The folder of a run that saved its first, random weights."""
    tokenizer = train_tokenizer([TEXT], 280)
    tokenizer = grow_for_chat(tokenizer) if with_roles else tokenizer
    size = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "sequence_length": 48}
    config = Config(model=ModelConfig(**size, init_std=0.3), optim=OptimConfig(precision="fp32"))
    return save_random_run(folder, config, tokenizer)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("chat") / "run", with_roles=True)


@pytest.fixture
def say(run_dir, monkeypatch, capsys):
    def call(text: str, *arguments: str) -> tuple[str, str]:
        options = ["--checkpoint", str(run_dir), "--greedy", "--max-new-tokens", "6", *arguments]
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert cli.run(["chat", *options]) == 0
        seen = capsys.readouterr()
        return seen.out, seen.err

    return call


def test_every_line_is_answered_with_what_was_said_before_in_mind(say):
    alone, _ = say("the cat\n")
    both, _ = say("the cat\n\nthe dog\n")
    assert both.startswith(alone)
    assert say("the dog\n")[0] != both.removeprefix(alone)  # the first exchange is in its prompt
    assert say("the cat\n/undo\nthe dog\n")[0] == alone + say("the dog\n")[0]
    assert say("the cat\n/reset\nthe dog\n")[0] == alone + say("the dog\n")[0]
    assert say("the cat\n")[0] == alone


def test_the_system_is_told_first(say):
    told, _ = say("the cat\n", "--system", "on the log")
    assert told != say("the cat\n")[0]
    assert say("/system on the log\nthe cat\n")[0] == told
    assert say("/system\nthe cat\n", "--system", "on the log")[0] == say("the cat\n")[0]


def test_commands_and_the_end(say):
    assert say("/quit\nthe cat\n")[0] == ""
    assert say("")[0] == ""
    assert say("/sytem x\n")[0] == "/sytem is not a command; the commands are /reset, /undo, /system, /quit\n"


def test_a_full_context_is_said_and_a_turn_that_cannot_fit_is_refused(say):
    out, err = say("the cat sat on the mat\n" * 6)
    assert out.count("\n") >= 6
    assert "the oldest 2 turns are left out" in err
    refused, _ = say("z" * 60 + "\nthe cat\n")
    assert "but the model's context has 48: shorten it" in refused
    assert refused.endswith(say("the cat\n")[0])


def test_a_model_without_roles_is_refused(tmp_path):
    folder = make_run(tmp_path / "plain", with_roles=False)
    with pytest.raises(DataError, match=r"<\|system\|>.*--add chat"):
        cli.run(["chat", "--checkpoint", str(folder)])


def test_too_few_ranks_are_refused(run_dir):
    with pytest.raises(ConfigError, match="needs 2 ranks, not 1: start them with --nproc-per-node 2"):
        cli.run(["chat", "--checkpoint", str(run_dir), "--tensor-parallel-size", "2"])
