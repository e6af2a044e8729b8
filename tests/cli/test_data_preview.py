"""`megagpt data preview`."""

import json
import re

import pytest

from megagpt.data.chat import Message, encode_chat, grow_for_chat
from megagpt.data.packing import pack
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, DataError

TOKENIZER = grow_for_chat(train_tokenizer(["the cat sat on the mat"] * 3, 280))


@pytest.fixture
def preview(tmp_path, megagpt):
    def call(records: list[dict], *options: str) -> str:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        TOKENIZER.save(tmp_path / "tokenizer.json")
        return megagpt("data", "preview", tmp_path / "a.jsonl", "--tokenizer", tmp_path / "tokenizer.json", *options)

    return call


def test_what_counts_is_marked_and_all_is_counted(preview):
    records = [{"instruction": "the cat", "output": "sat é"}, {"instruction": "the mat", "output": "x" * 90}]
    out = preview(records, "--sequence-length", "40", "--samples", "5")
    assert out.startswith("<|user|>the cat<|endoftext|><|assistant|>[[sat é<|endoftext|>]]\n\n")
    example = encode_chat(TOKENIZER, [Message("user", "the cat"), Message("assistant", "sat é")])
    length, trained = len(example.tokens) - 1, int(example.trained.sum())
    assert "a.jsonl: 2 records, read as instruction, input, output\n" in out
    assert "2 records, 1 of them learnt\n  1 left out: their first answer ends beyond 40 tokens\n" in out
    assert f"{length} tokens, {trained} ({trained / length:.1%}) count; the longest has {length}" in out
    assert f"packed: 1 sequences of 40, {length / 40:.1%} full" in out
    several = preview(records[:1] * 30, "--sequence-length", "40", "--samples", "0")
    assert f"packed: {len(pack([length] * 30, 40))} sequences" in several
    assert not re.search(r"\[\[", several)


def test_what_is_left_out_or_not_read_is_said_with_its_reason(preview):
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat", "name": "tom"}]
    records = [
        {"messages": talk, "id": 7},
        {"messages": talk, "label": 0},
        {"messages": talk[:1], "id": 8},
        {"messages": [talk[0], talk[1] | {"weight": 0}]},
        {"messages": [talk[0], {"role": "assistant", "content": "x" * 90}]},
    ]
    out = preview(records, "--sequence-length", "40")
    assert "not read, with their records: messages[].name (3), id (2)" in out
    assert "5 records, 1 of them learnt" in out
    assert "1 left out: their label is false" in out
    assert "2 left out: they have no answer to be learnt" in out
    assert "1 left out: their first answer ends beyond 40 tokens" in out


def test_what_training_would_refuse_is_refused(preview):
    talk = [{"role": "assistant", "content": "a"}]
    with pytest.raises(DataError, match="none of 1 conversations has an answer"):
        preview([{"messages": [{"role": "user", "content": "a"}]}])
    with pytest.raises(DataError, match="none of 1 conversations has an answer within 1 tokens"):
        preview([{"messages": talk * 3}], "--sequence-length", "1")
    with pytest.raises(DataError, match="every text of the conversations is an assistant's"):
        preview([{"messages": talk * 3}])
    with pytest.raises(ConfigError, match="--samples is -1"):
        preview([{"messages": talk}], "--samples", "-1")
