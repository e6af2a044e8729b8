"""Recipes fit together, and what is missing is named with the command that makes it."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from megagpt.__main__ import main
from megagpt.config.groups import CONFIG_DIR, groups
from megagpt.config.inputs import COMMANDS, GPT3_CORPORA, Input, advice, how_to_make, inputs
from megagpt.config.load import load
from megagpt.errors import CheckpointError, DataError

EXPERIMENTS = groups()["experiment"]
OURS = [name for name in EXPERIMENTS if not name.startswith("demo")]
STAGES = {"pretrain": None, "code": "pretrain", "edit": "code", "sft": "pretrain", "reward": "sft", "ppo": "sft"}
"""What each stage's recipe starts from."""


@pytest.mark.parametrize("name", OURS)
def test_inputs_of_a_recipe_are_outputs_of_another_or_files_with_a_command(name):
    config = load([f"experiment={name}"])
    assert config.run_name == name
    runs = {f"runs/{other}" for other in OURS}
    for found in inputs(config):
        if found.kind == "run":
            assert found.path in runs
        elif found.kind == "corpus":
            assert f"--tokenizer {config.data.tokenizer} --output {found.path} " in advice(found, config)
        else:
            assert found.path in COMMANDS


@pytest.mark.parametrize("size", ["125m", "1_3b"])
def test_a_size_chains_from_pretraining_to_ppo(size):
    vocabulary = {}
    for stage, before in STAGES.items():
        config = load([f"experiment={stage}_{size}"])
        assert config.stage.name == stage
        assert config.checkpoint.load == (f"runs/{before}_{size}" if before else None)
        assert vocabulary.setdefault(config.data.tokenizer, config.model.vocab_size) == config.model.vocab_size
        assert config.model.vocab_size >= (load([f"experiment={before}_{size}"]).model.vocab_size if before else 0)
        base = load([f"experiment=pretrain_{size}"]).model
        assert (config.model.num_layers, config.model.hidden_size) == (base.num_layers, base.hidden_size)
    assert config.ppo.reward_model == f"runs/reward_{size}"
    chained = [load([f"experiment={stage}_{size}"]).data.tokenizer for stage in ("sft", "reward", "ppo")]
    assert set(chained) == {"data/chat_tokenizer.json"}  # the model and its judge read the same tokens


SIZES = {"350m": "ada", "1_3b": "babbage", "6_7b": "curie", "175b": "davinci"}
FAMILIES = {"text_similarity": "embed_text", "text_search": "embed_text", "code_search": "embed_code"}


@pytest.mark.parametrize("size", SIZES)
def test_a_size_chains_from_pretraining_to_embeddings(size):
    before = {"embed_text": "pretrain", "embed_code": "code", "code": "pretrain"}
    chains = {f"{stage}_{size}": f"{base}_{size}" for stage, base in before.items()}
    chains |= {f"{family}_{SIZES[size]}": f"{base}_{size}" for family, base in FAMILIES.items()}
    pretrained = load([f"experiment=pretrain_{size}"]).model
    for name, base in chains.items():
        config, start = load([f"experiment={name}"]), load([f"experiment={base}"])
        assert config.checkpoint.load == f"runs/{base}"
        assert start.model.vocab_size <= config.model.vocab_size
        assert (config.model.vocab_size, config.data.tokenizer) == (start.model.vocab_size, start.data.tokenizer) or (
            name.startswith("code_") and base.startswith("pretrain")
        )
        for field in ("num_layers", "hidden_size", "num_attention_heads", "sequence_length"):
            assert getattr(config.model, field) == getattr(pretrained, field)


def test_a_tokenizer_extends_another_that_has_a_command():
    for path, command in COMMANDS.items():
        assert path.startswith("data/")
        for source in re.findall(r"--extend (\S+)", command):
            assert source in COMMANDS
        if "--output " in command:
            assert f"--output {path}" in command


def test_corpora_of_the_mixture():
    assert tuple(corpus.path for corpus in load(["data=gpt3"]).data.corpora) == GPT3_CORPORA


def failure(tmp_path: Path, monkeypatch, error: type, *overrides: str) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(error) as caught:
        main([*overrides, "parallel=data"])
    return str(caught.value)


def test_missing_corpora_are_listed_with_their_weights(tmp_path, monkeypatch):
    text = failure(tmp_path, monkeypatch, DataError, "experiment=pretrain_125m")
    make = "megagpt data preprocess --tokenizer data/tokenizer.json --output"
    for path, weight in zip(GPT3_CORPORA, ("0.60", "0.22", "0.08", "0.08", "0.03"), strict=True):
        assert f"weight {weight}: `{make} {path} TEXT.jsonl`" in text
    assert "GPT-3's own are not public" in text
    assert "'data.corpora=[{path:data/web}]'" in text and f"`{make} data/web TEXT.jsonl`" in text
    assert "data.tokenizer: no data/tokenizer.json; make it with `megagpt data tokenizer --vocab-size 50257" in text


def test_missing_files_and_runs_are_listed_together(tmp_path, monkeypatch):
    text = failure(tmp_path, monkeypatch, DataError, "experiment=sft_1_3b")
    extend = "megagpt data tokenizer --extend data/tokenizer.json --add chat --output data/chat_tokenizer.json"
    assert text.startswith("3 of the 3 inputs")
    assert f"data.tokenizer: no data/chat_tokenizer.json; make it with `{extend}`" in text
    assert "data.conversations: no data/conversations.jsonl; put your own there, or make it with" in text
    assert "checkpoint.load: no runs/pretrain_1_3b; make it with `megagpt train experiment=pretrain_1_3b`" in text
    (tmp_path / "data").mkdir()
    for name in ("chat_tokenizer.json", "conversations.jsonl"):
        (tmp_path / "data" / name).touch()
    text = failure(tmp_path, monkeypatch, CheckpointError, "experiment=sft_1_3b")
    assert text.startswith("1 of the 3 inputs")


def test_missing_pairs_are_named_with_the_command_that_makes_them(tmp_path, monkeypatch):
    text = failure(tmp_path, monkeypatch, DataError, "experiment=embed_text_350m", "embed.scored_pairs=sts.jsonl")
    make = "megagpt data pairs --kind neighbours --output data/text_pairs.jsonl TEXT.jsonl"
    assert text.startswith("4 of the 4 inputs")
    assert f"data.pairs: no data/text_pairs.jsonl; put your own there, or make it with `{make}`" in text
    assert "embed.scored_pairs: no sts.jsonl; give a file of sentence pairs" in text and "--kind scored`" in text
    assert "checkpoint.load: no runs/pretrain_350m; make it with `megagpt train experiment=pretrain_350m`" in text
    tuning = failure(tmp_path, monkeypatch, DataError, "experiment=text_similarity_ada", "data.pairs=[mine.jsonl]")
    assert "data.pairs: no mine.jsonl; give a file of pairs, or make one with `megagpt data pairs`" in tuning
    assert "checkpoint.load: no runs/embed_text_350m; make it with `megagpt train experiment=embed_text_350m`" in tuning


def test_other_ranks_leave_it_to_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setitem(sys.modules, "megagpt.stages", SimpleNamespace(run=lambda config: 75))
    assert main(["experiment=sft_1_3b", "parallel=data"]) == 75


def test_a_run_with_checkpoints_needs_no_other_except_ppo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, needed in (("sft_1_3b", False), ("ppo_1_3b", True)):
        (tmp_path / "runs" / name / "checkpoints" / "step_00000001").mkdir(parents=True)
        found = [entry for entry in inputs(load([f"experiment={name}"])) if entry.field == "checkpoint.load"]
        assert bool(found) == needed


def test_advice_for_paths_of_ones_own():
    config = load(["experiment=pretrain_125m"])
    assert "--vocab-size 50257 --output mine.json" in advice(Input("data.tokenizer", "mine.json", "tokenizer"), config)
    assert "megagpt data instructions" in advice(Input("data.conversations", "mine.jsonl", "file"), config)
    assert "run folder" in advice(Input("checkpoint.load", "mine", "run"), config)
    assert how_to_make("mine.json") == how_to_make("elsewhere/pretrain_125m") == ""
    assert how_to_make("runs/sft") == "make it with `megagpt train experiment=demo_sft`"
    assert how_to_make("runs/demo/data/tokenizer.json") == "make it with `make train` in a checkout of megagpt"
    assert {file.stem for file in (CONFIG_DIR / "experiment").glob("*.yaml")} == set(EXPERIMENTS)
