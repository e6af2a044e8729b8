"""Conversations with models that came with chat templates of their own."""

import asyncio

import pytest

pytest.importorskip("starlette")

from megagpt.data.chat import Message, chat_prompt
from megagpt.data.tokenizer import Tokenizer
from megagpt.serve.chat import ChatWriter
from megagpt.serve.errors import ApiError
from megagpt.serve.interface import NewToken
from megagpt.serve.prompts import completion_prompts, conversation_prompt
from tests.data.chat_templates import GEMMA, INST
from tests.data.tokenizer_kinds import save
from tests.serve.fake import FakeModel


def served(kind: str, template: str, folder) -> FakeModel:
    model = FakeModel("m", {"chat"})
    model.tokenizer = Tokenizer.load(save(kind, folder, template) / "tokenizer.json")
    return model


def test_prompts_are_the_template_s(tmp_path):
    model = served("gemma", GEMMA, tmp_path)
    asked = [Message("user", "a <eos>")]
    assert asyncio.run(conversation_prompt(model, asked, "messages")) == chat_prompt(model.tokenizer, asked)
    with pytest.raises(ApiError, match="refuses this conversation: there is no system turn"):
        asyncio.run(conversation_prompt(model, [Message("system", "x"), *asked], "messages"))
    ids = asyncio.run(completion_prompts(model, ["the cat", ""], None))
    assert ids == [[model.tokenizer.bos_id, *model.tokenizer.encode("the cat")], [model.tokenizer.bos_id]]


def test_messages_do_not_begin_with_the_space_of_sentencepiece(tmp_path):
    tokenizer = served("llama2", INST, tmp_path).tokenizer
    ids = tokenizer.encode("the cat  sat")
    writer = ChatWriter(0, tokenizer)
    texts = [tokenizer.decode_bytes([token]).decode() for token in ids]
    assert texts[0].startswith(" ")
    sent = []
    for place, (token, text) in enumerate(zip(ids, texts, strict=True)):
        item = NewToken(token, text, 0.0, (), "length" if place == len(ids) - 1 else None)
        sent += [piece["delta"].get("content") or "" for piece in writer.pieces(item)]
    assert "".join(sent) == writer.whole()["message"]["content"] == "the cat  sat"
