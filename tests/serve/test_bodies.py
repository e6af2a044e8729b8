"""Bodies that are wrong: each is refused with 400, by the name of what is wrong."""

import asyncio
import json
import time

import pytest

from megagpt.serve.bounds import Bounds
from tests.serve.conftest import Client
from tests.serve.fake import FakeModel

CHAT = {"messages": [{"role": "user", "content": "a"}]}
WRONG = [
    ("completions", {"n": True}, "n", "n is true"),
    ("completions", {"n": 0}, "n", "n is 0"),
    ("completions", {"n": 129}, "n", "128"),
    ("completions", {"n": 2.0}, "n", "whole number"),
    ("completions", {"max_tokens": -1}, "max_tokens", "-1"),
    ("completions", {"max_tokens": "3"}, "max_tokens", "whole number"),
    ("completions", {"temperature": 2.1}, "temperature", "2.1"),
    ("completions", {"temperature": True}, "temperature", "true"),
    ("completions", {"temperature": 10**400}, "temperature", "temperature is 1000"),
    ("completions", {"top_p": -0.1}, "top_p", "-0.1"),
    ("completions", {"frequency_penalty": 3}, "frequency_penalty", "3"),
    ("completions", {"presence_penalty": -3}, "presence_penalty", "-3"),
    ("completions", {"seed": 2**63}, "seed", "seed"),
    ("completions", {"logprobs": 6}, "logprobs", "5"),
    ("completions", {"logprobs": True}, "logprobs", "true"),
    ("completions", {"echo": 1}, "echo", "true or false"),
    ("completions", {"stop": ["a"] * 17}, "stop", "at most 16"),
    ("completions", {"stop": ""}, "stop", "1 to 256 characters"),
    ("completions", {"stop": "x" * 257}, "stop", "1 to 256 characters"),
    ("completions", {"stop": [1]}, "stop", "stop"),
    ("completions", {"prompt": []}, "prompt", "prompt is []"),
    ("completions", {"prompt": [[]]}, "prompt", "prompt is [[]]"),
    ("completions", {"prompt": ["a", 1]}, "prompt", "prompt"),
    ("completions", {"prompt": [1, True]}, "prompt", "prompt"),
    ("completions", {"prompt": [10**30]}, "prompt", "not a token id"),
    ("completions", {"prompt": [-1]}, "prompt", "-1 is not a token id"),
    ("completions", {"prompt": "the cat sat " * 100}, "prompt", "64 tokens"),
    ("completions", {"prompt": "x" * 100_000}, "prompt", "100,000 characters"),
    ("completions", {"prompt": ["a"] * 65, "n": 2}, "prompt", "130 completions"),
    ("completions", {"prompt": [1], "suffix": "a"}, "prompt", "token ids cannot have a suffix"),
    ("completions", {"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ("completions", {"logit_bias": {"1": 101}}, "logit_bias[1]", "101"),
    ("completions", {"logit_bias": {"99999": 1}}, "logit_bias", "99999 is not a token id"),
    ("completions", {"logit_bias": [1]}, "logit_bias", "token ids"),
    ("completions", {"best_of": 1, "n": 2}, "best_of", "best_of 1 below n 2"),
    ("completions", {"best_of": 21}, "best_of", "20"),
    ("completions", {"best_of": 2, "stream": True}, "best_of", "stream"),
    ("completions", {"suffix": "a", "echo": True}, "echo", "suffix"),
    ("completions", {"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    (
        "completions",
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "not supported",
    ),
    ("completions", {"tempreature": 1}, "tempreature", "tempreature is not a field"),
    ("completions", CHAT, "messages", "messages is not a field"),
    ("completions", {"model": None}, "model", "model is missing"),
    ("completions", {"model": 5}, "model", "must be a text"),
    ("chat/completions", {}, "messages", "messages is missing"),
    ("chat/completions", {"messages": []}, "messages", "at least 1"),
    ("chat/completions", {"messages": ["a"]}, "messages[0]", "messages[0]"),
    ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", '"tool"'),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
        "part 0 is not",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "a", "name": "me"}]},
        "messages[0].name",
        "not supported",
    ),
    ("chat/completions", CHAT | {"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
    ("chat/completions", CHAT | {"response_format": {"type": "json_object"}}, "response_format", '{"type": "text"}'),
    ("chat/completions", CHAT | {"store": 0}, "store", "store is not supported"),
    ("chat/completions", CHAT | {"audio": {}}, "audio", "audio is not supported"),
    ("chat/completions", CHAT | {"logprobs": 1}, "logprobs", "true or false"),
    ("chat/completions", CHAT | {"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
    ("chat/completions", CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    ("chat/completions", CHAT | {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differ"),
    ("chat/completions", CHAT | {"max_tokens": 0}, "max_tokens", "0"),
    ("chat/completions", {"messages": [{}] * 2049}, "messages", "at most 2,048 messages"),
    ("completions", {"logit_bias": dict.fromkeys(map(str, range(10_001)), 200)}, "logit_bias", "at most 10,000"),
    ("edits", {}, "instruction", "instruction is missing"),
    ("edits", {"instruction": "a", "seed": 1}, "seed", "seed is not a field"),
    ("edits", {"instruction": "a", "n": 21}, "n", "20"),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(model, client, path, body, param, words):
    error = client.refusal(path, **{"model": "gpt", **body})
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]
    assert not model.requests


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": [], "function_call": "auto"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "store": False, "service_tier": "auto"},
        {"user": "me", "safety_identifier": "me", "prompt_cache_key": "k", "metadata": {"a": "b"}},
        dict.fromkeys(("n", "stop", "stream", "stream_options", "temperature", "logprobs", "top_logprobs", "tools")),
        {"logit_bias": {}, "stop": []},
    ],
)
def test_what_asks_for_nothing_is_accepted(client, body):
    client.post("chat/completions", model="gpt", **CHAT, **body)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"model": "gpt"} {"model": "gpt"}',
        b'{"model": "gpt", "temperature": NaN}',
        b'{"model": "gpt", "temperature": Infinity}',
        b'{"model": "gpt", "temperature": 1e999}',
        b'{"model": "gpt", "max_tokens": ' + b"9" * 1_000_000 + b"}",
        b'{"model": "gpt", "prompt": ' + b"[" * 1_000_000 + b"}",
        b'{"a":' * 300_000,
        b'{"model": "gpt", "prompt": "\\ud800"}',
        b'{"model": "gpt", "prompt": "\xff"}',
        '{"model": "gpt"}'.encode("utf-16"),
        b"\x00" * 1000,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_what_is_no_json(model, client, content):
    response = client.ask("POST", "/v1/completions", content=content, headers={"Content-Type": "text/plain"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_json", "invalid_value")
    assert not model.requests


def test_hostile_bodies_cost_little_before_they_are_refused(model, client, monkeypatch):
    """Four MiB of fields that are all wrong, or of texts that are too many, stop nobody else."""
    monkeypatch.setattr(model, "infill_prompt", None)
    monkeypatch.setattr(model, "tokenizer", None)
    turn = {"role": "system", "content": "a"}
    bodies = {
        "fields": ("completions", {f"f{number}": 1 for number in range(300_000)}),
        "prompts": ("completions", {"prompt": ["a"] * 700_000}),
        "gaps": ("completions", {"prompt": ["a"] * 700_000, "suffix": "b"}),
        "messages": ("chat/completions", {"messages": [turn] * 100_000}),
        "wrong messages": ("chat/completions", {"messages": [{"a": 1, "b": 2}] * 180_000}),
        "biases": ("completions", {"logit_bias": {str(number): "x" for number in range(250_000)}}),
    }
    for path, body in bodies.values():
        content = json.dumps({"model": "gpt", **body}).encode()
        assert len(content) < 4 << 20
        began = time.process_time()
        response = client.ask("POST", f"/v1/{path}", content=content)
        assert response.status_code == 400 and len(response.content) < 1000
        assert time.process_time() - began < 4
    assert not model.requests


def test_a_body_needs_no_content_type(client):
    content = b'{"model": "gpt", "prompt": "\\u0000 \xf0\x9f\x8e\x89 \\ud83c\\udf89", "max_tokens": 1}'
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert client.ask("POST", "/v1/completions", content=content, headers=headers).status_code == 200


def test_bounds_of_bodies_and_requests():
    bounds = Bounds(body_bytes=100, body_seconds=0.1, completions=3, new_tokens=40)
    client = Client(FakeModel("gpt", {"completions"}), bounds=bounds)

    async def endless():
        while True:
            yield b" " * 60

    async def slow():
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    assert client.refusal("completions", 413, model="gpt", prompt="a" * 200)["code"] == "request_too_large"
    assert client.ask("POST", "/v1/completions", content=endless()).status_code == 413
    assert client.ask("POST", "/v1/completions", content=slow()).status_code == 408
    assert "3 are allowed" in client.refusal("completions", model="gpt", n=4)["message"]
    assert "40 tokens" in client.refusal("completions", model="gpt", n=2, max_tokens=21)["message"]
    assert client.post("completions", model="gpt", n=3, max_tokens=13)["usage"]["prompt_tokens"] == 1
