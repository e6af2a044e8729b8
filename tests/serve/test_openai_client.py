"""The `openai` Python client over loopback, every endpoint."""

import numpy as np
import openai
import pytest

from tests.serve.fake import FakeModel
from tests.serve.live import Live, live

HELLO = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def served():
    model = FakeModel("gpt", {"completions", "suffix", "chat", "edits"})
    with live(model, FakeModel("vectors", {"embeddings"}), key="secret") as made:
        yield made


@pytest.fixture
def client(served: Live):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret", max_retries=0) as made:
        yield made


def test_completions(client):
    body = {"model": "gpt", "prompt": ["the", "cat"], "n": 2, "seed": 1, "logprobs": 2, "max_tokens": 6}
    whole = client.completions.create(**body)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    texts, usage = ["", "", "", ""], None
    for chunk in client.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage
    inserted = client.completions.create(
        model="gpt", prompt="def f(", suffix="):", extra_body={"top_k": 1}, max_tokens=2
    )
    assert inserted.choices[0].finish_reason in ("stop", "length")


def test_chat(client):
    body = {"model": "gpt", "messages": HELLO, "seed": 2, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True))
    pieces = [chunk.choices[0] for chunk in chunks]
    assert pieces[0].delta.role == "assistant"
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert pieces[-1].finish_reason == whole.choices[0].finish_reason
    entries = [entry for piece in pieces if piece.logprobs for entry in piece.logprobs.content]
    assert entries == whole.choices[0].logprobs.content


def test_edits(client):
    answer = client.post("/edits", body={"model": "gpt", "instruction": "Fix.", "input": "a"}, cast_to=object)
    assert answer["object"] == "edit" and isinstance(answer["choices"][0]["text"], str)


def test_embeddings(client):
    # The client asks for base64 by itself, and decodes it.
    coded = client.embeddings.create(model="vectors", input=["the cat", "t"], dimensions=4)
    plain = client.embeddings.create(model="vectors", input=["the cat", "t"], dimensions=4, encoding_format="float")
    vectors = [np.float32([one.embedding for one in answer.data]) for answer in (coded, plain)]
    assert vectors[0].shape == (2, 4) and np.array_equal(*vectors)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["gpt", "vectors"]
    assert client.models.retrieve("gpt").abilities == ["completions", "suffix", "chat", "edits"]


def test_errors(client, served):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="gpt", prompt="a", temperature=5)
    assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("other")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model="gpt", messages=HELLO, tools=[{"type": "function"}])


def test_a_busy_server_is_asked_again(client, served, monkeypatch):
    model, slept = served.models[0], []
    monkeypatch.setattr(openai.OpenAI, "_sleep_for_retry", lambda self, **about: slept.append(about["response"]))
    model.places = 0
    try:
        with pytest.raises(openai.RateLimitError) as refused:
            client.with_options(max_retries=2).completions.create(model="gpt", prompt="a")
    finally:
        model.places = 1000
    assert refused.value.code == "server_busy"
    assert [response.headers["retry-after"] for response in slept] == ["3", "3"]


def test_a_failure_in_the_middle_of_a_stream(client, served):
    model = served.models[0]
    model.seconds = 0.01
    try:
        stream = client.completions.create(model="gpt", prompt=[1], max_tokens=50, stream=True, temperature=2, n=8)
        next(stream)
        model.broken = True
        with pytest.raises(openai.APIError, match="failed to answer"):
            list(stream)
    finally:
        model.broken, model.seconds = False, 0.0
