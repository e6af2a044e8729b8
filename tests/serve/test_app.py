"""Routes, errors, abilities, the key, headers, metrics and the page."""

import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from megagpt.serve.bounds import Bounds
from tests.serve.conftest import Client
from tests.serve.fake import DIMENSIONS, WINDOW, FakeModel
from tests.serve.schemas import check

CHAT = {"messages": [{"role": "user", "content": "a"}]}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def test_models(client):
    answer = client.ask("GET", "/v1/models").json()
    check("models", answer)
    first, plain, vectors = answer["data"]
    assert first["abilities"] == ["completions", "suffix", "chat", "edits"]
    assert (first["context_length"], first["dimensions"], first["created"]) == (WINDOW, 0, 1_700_000_000)
    assert (plain["abilities"], vectors["abilities"], vectors["dimensions"]) == (
        ["completions"],
        ["embeddings"],
        DIMENSIONS,
    )
    assert client.ask("GET", "/v1/models/plain").json() == plain
    assert client.ask("GET", "/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (
            "chat/completions",
            CHAT | {"model": "plain"},
            "no tokens for the roles of a conversation, so it cannot chat: ask gpt",
        ),
        ("edits", {"instruction": "a", "model": "plain"}, "ask gpt"),
        (
            "completions",
            {"suffix": "a", "model": "plain"},
            "filling in the middle, so it cannot insert before a suffix: ask gpt",
        ),
        ("completions", {"model": "vectors"}, "turns texts into vectors and generates none: ask gpt, plain"),
        ("embeddings", {"input": "a", "model": "gpt"}, "makes no vectors: ask vectors"),
    ],
)
def test_what_a_model_cannot_do_is_refused_and_who_can_is_named(client, path, body, words):
    error = client.refusal(path, **body)
    assert error["code"] == "unsupported_by_model"
    assert error["param"] == ("suffix" if "suffix" in body else "model")
    assert words in error["message"]


def test_what_no_model_can_do():
    alone = Client(FakeModel("alone", {"completions"}))
    assert alone.refusal("embeddings", model="alone", input="a")["message"].endswith("no model here can")


def test_paths_methods_and_models_that_are_not_there(client):
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v1/engines/gpt/completions", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "unknown_url"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/gpt", 405, "method_not_allowed"),
        ("GET", "/page/nothing.js", 404, "unknown_url"),
        ("GET", "/page/%2e%2e%2finterface.py", 404, "unknown_url"),
        ("GET", "/page/%00.js", 404, "unknown_url"),
    ):
        response = client.ask(method, path)
        check("error", response.json())
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), path
    assert client.ask("GET", "/v1/completions").headers["allow"] == "POST"
    error = client.refusal("completions", 404, model="other")
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "gpt, plain, vectors" in error["message"]


def test_the_key():
    client = Client(FakeModel("gpt", {"completions"}), key="secret")
    for path, status in (("/v1/models", 401), ("/metrics", 401), ("/health", 200), ("/", 200)):
        assert client.ask("GET", path).status_code == status
    for value in ("Bearer wrong", "Bearer ", "secret", "Basic secret", "Bearer secret2", "Bearer sécret"):
        response = client.ask("GET", "/v1/models", headers={"Authorization": value.encode()})
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        check("error", response.json())
    for scheme in ("Bearer", "bearer"):
        assert client.ask("GET", "/v1/models", headers={"Authorization": f"{scheme} secret"}).status_code == 200
    # What is wrong with a request is nobody's business without the key.
    assert client.ask("POST", "/v1/nothing", content=b"{").status_code == 401


def test_pages_of_others_get_nothing():
    client = Client(FakeModel("gpt", {"completions"}), hosts={"localhost", "127.0.0.1", "[::1]"})
    for host, status in (
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("", 403),
    ):
        assert client.ask("GET", "/v1/models", headers={"Host": host}).status_code == status, host
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        response = client.ask(
            "POST", "/v1/completions", json={"model": "gpt", "max_tokens": 1}, headers={"Sec-Fetch-Site": site}
        )
        assert response.status_code == status, site
    response = client.ask("GET", "/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


def test_the_page_and_the_headers(client):
    page = client.ask("GET", "/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    script = client.ask("GET", "/page/main.js")
    assert script.headers["content-type"].startswith("text/javascript")
    for response in (page, script, client.ask("GET", "/v1/models"), client.ask("GET", "/nothing")):
        assert response.headers["content-security-policy"] == POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-request-id"].startswith("req_")
    stream = client.ask("POST", "/v1/completions", json={"model": "gpt", "stream": True})
    assert "no-cache" in stream.headers["cache-control"] and stream.headers["x-accel-buffering"] == "no"
    assert client.ask("GET", "/v1/models").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429(model, client, stream):
    model.places = 3
    error = client.refusal("completions", 429, model="gpt", n=4, stream=stream)
    assert (error["type"], error["code"]) == ("rate_limit_error", "server_busy")
    response = client.ask("POST", "/v1/completions", json={"model": "gpt", "n": 4, "stream": stream})
    assert response.headers["retry-after"] == "3"  # 2.5 seconds, rounded up
    assert model.active == 0
    embedder = client.service.models["vectors"]
    embedder.places = 0
    client.refusal("embeddings", 429, model="vectors", input="a")


def test_requests_beyond_the_bound_are_429():
    client = Client(FakeModel("gpt", {"completions"}), bounds=Bounds(requests=0))
    response = client.ask("POST", "/v1/completions", json={"model": "gpt"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert client.ask("GET", "/health").status_code == 200


def test_failures_are_not_explained_to_clients(model, client, caplog):
    model.broken = True
    with caplog.at_level(logging.ERROR):
        error = client.refusal("completions", 500, model="gpt")
    assert error["type"] == "server_error" and "secret" not in error["message"]
    assert "the secret reason" in caplog.text


def test_metrics(client):
    client.post("completions", model="gpt", prompt=[[1, 2], [3]], max_tokens=2, logit_bias={"0": 1})
    client.refusal("completions", 404, model="other")
    client.ask("GET", "/v1/what-a-client-made-up")
    response = client.ask("GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert found["megagpt_requests_total", "/v1/completions", "200"] == 1
    assert found["megagpt_requests_total", "/v1/completions", "404"] == 1
    assert found["megagpt_requests_total", "404", "other"] == 1
    assert found["megagpt_prompt_tokens_total", "gpt"] == 3
    assert 2 <= found["megagpt_new_tokens_total", "gpt"] <= 4
    assert found["megagpt_running", "gpt"] == found["megagpt_waiting", "plain"] == 0
    assert found["megagpt_first_token_seconds_count", "gpt"] == 1
    assert found["megagpt_request_seconds_count", "/v1/completions"] == 2
    assert found["megagpt_request_seconds_bucket", "+Inf", "/v1/completions"] == 2
