"""POST /v1/chat/completions and /v1/edits."""

import numpy as np
import pytest

from megagpt.data.chat import Message, chat_prompt
from tests.serve.fake import WINDOW

HELLO = [{"role": "user", "content": "the cat"}]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (HELLO, [("user", "the cat")]),
        (
            [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, *HELLO],
            [("system", "a\n\nb"), ("user", "the cat")],
        ),
        (
            [*HELLO, {"role": "assistant", "content": "sat", "refusal": None, "tool_calls": []}, *HELLO],
            [("user", "the cat"), ("assistant", "sat"), ("user", "the cat")],
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]}],
            [("user", "the cat")],
        ),
    ],
)
def test_conversations_become_prompts(model, client, given, meant):
    answer = client.post("chat/completions", model="gpt", messages=given, max_tokens=3)
    expected = chat_prompt(model.tokenizer, [Message(*one) for one in meant])
    assert model.requests[-1].prompt == expected
    assert answer["usage"]["prompt_tokens"] == len(expected)


def test_a_stream_says_what_the_whole_answer_says(client):
    body = {"model": "gpt", "messages": HELLO, "n": 2, "seed": 4, "logprobs": True, "top_logprobs": 3}
    whole = client.post("chat/completions", **body)
    chunks = client.stream("chat/completions", **body, stream_options={"include_usage": True})
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == choice["index"]]
        assert pieces[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert (pieces[-1]["delta"], pieces[-1]["finish_reason"]) == ({}, choice["finish_reason"])
        assert {piece["finish_reason"] for piece in pieces[:-1]} == {None}
        assert "".join(piece["delta"].get("content", "") for piece in pieces) == choice["message"]["content"]
        entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"]


def test_logprobs_are_those_of_the_message_alone(model, client):
    settings = {"logprobs": True, "top_logprobs": 2, "temperature": 0}
    (choice,) = client.post("chat/completions", model="gpt", messages=HELLO, **settings)["choices"]
    last, tokens = model.requests[-1].prompt[-1], []
    while last != model.tokenizer.end_of_text_id and len(tokens) < WINDOW - len(model.requests[-1].prompt):
        best = np.argsort(-model.logprobs[last])[:2]
        tokens.append((model.logprobs[last].max(), [model.logprobs[last][one] for one in best], best))
        last = int(best[0])
    if last == model.tokenizer.end_of_text_id:
        tokens.pop()
    entries = choice["logprobs"]["content"]
    np.testing.assert_allclose([entry["logprob"] for entry in entries], [logprob for logprob, _, _ in tokens])
    for entry, (_, values, best) in zip(entries, tokens, strict=True):
        np.testing.assert_allclose([top["logprob"] for top in entry["top_logprobs"]], values)
        assert [bytes(top["bytes"]) for top in entry["top_logprobs"]] == [
            model.tokenizer.decode_bytes([one]) for one in best
        ]


def test_without_a_length_an_answer_may_fill_the_context(model, client):
    client.post("chat/completions", model="gpt", messages=HELLO)
    request = model.requests[-1]
    assert len(request.prompt) + request.settings.max_new_tokens == WINDOW
    client.post("chat/completions", model="gpt", messages=HELLO, max_completion_tokens=7, max_tokens=7)
    assert model.requests[-1].settings.max_new_tokens == 7
    error = client.refusal("chat/completions", model="gpt", messages=HELLO, max_completion_tokens=WINDOW)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_completion_tokens")
    long = [{"role": "user", "content": "the cat sat on the mat; " * 20}]
    assert client.refusal("chat/completions", model="gpt", messages=long)["code"] == "context_length_exceeded"


def test_edits(model, client):
    answer = client.post("edits", model="gpt", instruction="Fix it.", input="helo", n=2, temperature=0)
    expected = chat_prompt(model.tokenizer, [Message("user", "Fix it.\n\nhelo")])
    assert [request.prompt for request in model.requests] == [expected] * 2
    assert [request.choice for request in model.requests] == [0, 1]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[0] == texts[1] != ""
    client.post("edits", model="gpt", instruction="Write.")
    assert model.requests[-1].prompt == chat_prompt(model.tokenizer, [Message("user", "Write.")])
