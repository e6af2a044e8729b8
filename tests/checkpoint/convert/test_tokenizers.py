"""Tokenizers in conversions: their files there and back, what is told of them, what is refused."""

import json
import logging

import pytest
import torch
import transformers

from megagpt.checkpoint.convert.convert import convert
from megagpt.cli.base_run import base_overrides
from megagpt.config.load import load
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError, DataError
from tests.data.chat_templates import CHATML, LLAMA3
from tests.data.tokenizer_kinds import save

SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "vocab_size": 512,
}
KEPT = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")

OLDER = {
    "tokenizer.model": bytes(range(256)),
    "vocab.json": b'{"\xc4\xa0a":  0}',
    "merges.txt": b"#version: 0.2\r\na b\n",
}
"""Files with the vocabulary in older forms, of which the first is binary."""


def downloaded(kind: str, folder, template: str | None = None):
    """A folder with a tiny random model of Qwen2's or Llama's class, and a tokenizer."""
    config = (transformers.Qwen2Config if kind == "qwen" else transformers.LlamaConfig)(**SIZE)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return save(kind, folder, template)


@pytest.mark.parametrize(("kind", "template"), [("qwen", CHATML), ("llama3", LLAMA3), ("unigram", None)])
def test_files_come_back_byte_for_byte(kind, template, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    theirs = downloaded(kind, tmp_path / "theirs", template)
    (theirs / "added_tokens.json").write_text('{"x":  1}')
    for name, content in OLDER.items():
        (theirs / name).write_bytes(content)
    convert(theirs, tmp_path / "run", "megagpt", prove=False)
    assert "texts end with " in caplog.text and "warning" not in caplog.text.lower()
    convert(tmp_path / "run", tmp_path / "again", "megagpt", prove=False)
    convert(tmp_path / "again", tmp_path / "back", "huggingface", prove=False)
    names = (*KEPT, "added_tokens.json", *OLDER)
    assert {name: (tmp_path / "back" / name).read_bytes() for name in names} == {
        name: (theirs / name).read_bytes() for name in names
    }
    one, other = (Tokenizer.load(tmp_path / name / "tokenizer.json") for name in ("theirs", "again"))
    assert (one.end_ids, one.start_ids, one.companions.templates) == (
        other.end_ids,
        other.start_ids,
        other.companions.templates,
    )


def test_a_grown_tokenizer_has_no_vocabulary_in_older_forms(tmp_path):
    theirs = save("qwen", tmp_path)
    for name, content in OLDER.items():
        (theirs / name).write_bytes(content)
    old = Tokenizer.load(theirs / "tokenizer.json")
    new = old.with_special_tokens(["<one more>"])
    assert old.companions.texts.keys() - new.companions.texts.keys() == OLDER.keys()


def test_a_damaged_store_is_named(tmp_path):
    old = Tokenizer.load(save("qwen", tmp_path / "old") / "tokenizer.json")
    old.save(tmp_path / "tokenizer.json")
    store = tmp_path / "huggingface.json"
    values = json.loads(store.read_text())
    for text in ("a", "ab=", "ä" * 4, "====", "ab!="):
        store.write_text(json.dumps(values | {"tokenizer.model": text}))
        with pytest.raises(DataError, match=f"{store}: tokenizer.model is not base64"):
            Tokenizer.load(tmp_path / "tokenizer.json")


def test_code_is_not_passed_on(tmp_path):
    theirs = downloaded("qwen", tmp_path / "theirs")
    config = json.loads((theirs / "tokenizer_config.json").read_text())
    (theirs / "tokenizer_config.json").write_text(json.dumps(config | {"auto_map": {"AutoTokenizer": ["a.B", None]}}))
    convert(theirs, tmp_path / "run", "megagpt", prove=False)
    convert(tmp_path / "run", tmp_path / "back", "huggingface", prove=False)
    assert json.loads((tmp_path / "back/tokenizer_config.json").read_text()) == config


def test_templates_are_looked_at_before_the_work(tmp_path, caplog):
    for number, (template, message) in enumerate(
        [
            ("{% if %}", "chat template cannot be read"),
            ("{{ tools[0].name }}", "refuses this conversation: 'None' has no attribute 0|refuses this conversation"),
        ]
    ):
        theirs = downloaded("qwen", tmp_path / str(number), template)
        with pytest.raises(CheckpointError, match=f"{message}.*Mend the template, or remove it"):
            convert(theirs, tmp_path / "run", "megagpt", prove=False)
    assert not (tmp_path / "run").exists()
    convert(downloaded("qwen", tmp_path / "odd", "{{ messages[0].content }}"), tmp_path / "run", "megagpt", prove=False)
    assert "it can be talked to, but not be trained on conversations" in caplog.text


def test_a_run_starts_from_a_converted_model(tmp_path):
    convert(downloaded("llama3", tmp_path / "theirs", LLAMA3), tmp_path / "run", "megagpt", prove=False)
    config = load([*base_overrides(tmp_path / "run"), "stage=sft", "model.attention_dropout=0.1"])
    assert (config.model.hidden_size, config.model.vocab_size, config.model.num_query_groups) == (16, 512, 1)
    assert (config.model.head, config.model.attention_dropout, config.stage.name) == ("tokens", 0.1, "sft")
    assert config.data.tokenizer == str(tmp_path / "run/tokenizer.json")
    assert config.checkpoint.load == str(tmp_path / "run")
