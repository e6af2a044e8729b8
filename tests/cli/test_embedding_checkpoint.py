"""A checkpoint of an embedding model is refused, in a sentence, wherever text or scores are wanted of it."""

import json
from pathlib import Path

import pytest

from megagpt import cli
from megagpt.config.schema import Config, ModelConfig, OptimConfig, StageConfig
from megagpt.data.chat import grow_for_chat
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError
from tests.runs import save_random_run

TALK = {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "the mat"}]}
TEXT = "the cat sat on the mat.\n" * 5


def save_run(folder: Path, roles: bool) -> Path:
    tokenizer = train_tokenizer([TEXT], 280)
    tokenizer = grow_for_chat(tokenizer) if roles else tokenizer
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, sequence_length=48, head="embedding")
    config = Config(model=model, optim=OptimConfig(precision="fp32"), stage=StageConfig("embed"))
    return save_random_run(folder, config, tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of stage embed, with and without tokens of roles, and files of data."""
    folder = tmp_path_factory.mktemp("embedding")
    save_run(folder / "run", roles=True)
    save_run(folder / "plain", roles=False)
    (folder / "talks.jsonl").write_text(f"{json.dumps(TALK)}\n" * 20)
    edit = {"input": "teh cat", "instruction": "Fix the spelling.", "output": "the cat"}
    (folder / "edits.jsonl").write_text(f"{json.dumps(edit)}\n")
    return folder


def said(*arguments: object) -> str:
    """The error of a command."""
    with pytest.raises(ConfigError) as caught:
        cli.run([str(argument) for argument in arguments])
    return str(caught.value)


def test_it_writes_no_text(folder):
    message = "head is embedding (model.head), which generates no text: take the checkpoint of a language model"
    assert message in said("generate", "--checkpoint", folder / "run", "--prompt", "the")
    assert message in said("chat", "--checkpoint", folder / "run")
    assert message in said("chat", "--checkpoint", folder / "plain")
    places = (f"data={folder}/edits.jsonl", f"checkpoint={folder}/run", f"output={folder}/evaluated")
    assert message in said("evaluate", "task=edits", *places)
    assert not (folder / "evaluated").exists()


def test_it_scores_nothing(folder):
    message = "run is an embedding model, which gives no scores: give a run of stage reward"
    assert message in said("score", "--checkpoint", folder / "run", folder / "talks.jsonl")


def test_no_language_model_starts_from_it(folder, tmp_path):
    settings = [
        "stage=sft",
        f"checkpoint.load={folder}/run",
        f"data.conversations=[{folder}/talks.jsonl]",
        f"data.tokenizer={folder}/run/tokenizer.json",
        f"model.vocab_size={json.loads((folder / 'run/tokenizer.json').read_text())['added_tokens'][-1]['id'] + 1}",
        "model.num_layers=2",
        "model.hidden_size=32",
        "model.num_attention_heads=4",
        "model.sequence_length=48",
        "optim.precision=fp32",
        "optim.global_batch_size=4",
        "optim.ramp_start=null",
        "optim.ramp_tokens=0",
        "parallel.micro_batch_size=2",
        "data.split=[1,0,0]",
        f"runs_dir={tmp_path}",
    ]
    message = (
        "is an embedding model (model.head=embedding), which has no output projection: start from a language model"
    )
    assert message in said("train", *settings)
