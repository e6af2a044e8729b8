"""Folders for transformers have all that other servers read: the class, the end of a text and the chat template."""

import json
from pathlib import Path

import pytest

from megagpt.checkpoint.convert.convert import convert
from megagpt.data.chat import Message, chat_prompt, grow_for_chat
from megagpt.data.code_tokens import grow_for_code
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from tests.checkpoint.convert.test_hugging_face import saved

transformers = pytest.importorskip("transformers")
TALK = [Message("system", "to"), Message("user", "to be?\n "), Message("assistant", "or <b>not"), Message("user", "né")]
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "gpt-neo": "GPTNeoForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return train_tokenizer(["to be or not to be " * 30], 263)


def run_of(name: str, tokenizer: Tokenizer, folder: Path, **beside: dict) -> Path:
    """A run whose weights came from transformers, with what lay `beside` them there."""
    theirs = saved(name, folder / "theirs")
    (theirs / "generation_config.json").unlink()
    tokenizer.save(theirs / "tokenizer.json")
    for file, values in beside.items():
        (theirs / f"{file}.json").write_text(json.dumps(values))
    convert(theirs, folder / "ours", "megagpt", prove=False)
    return folder / "ours"


def check(folder: Path, tokenizer: Tokenizer) -> None:
    """transformers finds the end of a text, and the tokens of a conversation."""
    end = tokenizer.end_of_text_id
    assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id == end
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    turns = [{"role": message.role, "content": message.content} for message in TALK]
    asked = loaded.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert asked == chat_prompt(tokenizer, TALK)
    assert asked.count(end) == len(TALK)
    for text in ("to be\n        or not", "né"):
        assert loaded(text)["input_ids"] == tokenizer.encode(text)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_what_servers_read(name, plain, tmp_path):
    tokenizer = grow_for_chat(grow_for_code(plain))
    ours = run_of(name, tokenizer, tmp_path)
    (ours / "huggingface.json").unlink()  # as in a run that was trained from nothing
    convert(ours, tmp_path / "back", "huggingface", prove=False)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    assert config.architectures == [CLASSES[name]]
    assert config.eos_token_id == tokenizer.end_of_text_id
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert type(model).__name__ == CLASSES[name] and str(model.dtype) == "torch.float32"
    assert model.get_input_embeddings().weight.shape[0] == config.vocab_size
    check(tmp_path / "back", tokenizer)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert (loaded.eos_token_id, loaded.model_max_length) == (tokenizer.end_of_text_id, 64)


def test_what_a_foreign_folder_lacked_is_added(plain, tmp_path):
    tokenizer = grow_for_chat(plain)
    beside = {
        "generation_config": {"temperature": 0.6, "do_sample": True},
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|user|>"},
    }
    convert(run_of("llama", tokenizer, tmp_path, **beside), tmp_path / "back", "huggingface", prove=False)
    check(tmp_path / "back", tokenizer)
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "back").temperature == 0.6
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "back").pad_token == "<|user|>"


def test_a_tokenizer_without_roles_gets_no_template(plain, tmp_path):
    convert(run_of("gpt2", plain, tmp_path), tmp_path / "back", "huggingface", prove=False)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "back").chat_template is None
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "back").eos_token_id == plain.end_of_text_id


def test_a_model_that_learnt_to_talk_ends_where_its_own_tokenizer_says(plain, tmp_path):
    """Its folder came with another end, of the tokenizer before."""
    beside = {"generation_config": {"eos_token_id": [4, 5], "temperature": 0.6, "do_sample": True}}
    ours = run_of("qwen3", plain, tmp_path, **beside)
    tokenizer = grow_for_chat(plain)
    tokenizer.save(ours / "tokenizer.json")
    convert(ours, tmp_path / "back", "huggingface", prove=False)
    check(tmp_path / "back", tokenizer)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "back").eos_token_id == tokenizer.end_of_text_id
