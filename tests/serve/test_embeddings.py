"""POST /v1/embeddings."""

import base64

import numpy as np
import pytest

from tests.serve.fake import DIMENSIONS


@pytest.fixture
def embedder(client):
    return client.service.models["vectors"]


def expected(embedder, ids, dimensions=DIMENSIONS, seed=0):
    table = np.random.default_rng(seed).normal(size=(embedder.tokenizer.vocab_size, DIMENSIONS))
    vector = table[ids].sum(0)[:dimensions]
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def test_all_forms_of_inputs(embedder, client):
    ids, other = embedder.tokenizer.encode("the cat"), embedder.tokenizer.encode("t")
    for given, meant in (
        ("the cat", [ids]),
        (["the cat", "t"], [ids, other]),
        (ids, [ids]),
        ([ids, other], [ids, other]),
    ):
        answer = client.post("embeddings", model="vectors", input=given)
        for index, (entry, one) in enumerate(zip(answer["data"], meant, strict=True)):
            assert entry["index"] == index
            # In so few digits that they are the float32 numbers themselves.
            assert np.array_equal(np.float32(entry["embedding"]), expected(embedder, one))
        tokens = sum(map(len, meant))
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_base64_dimensions_and_sides(embedder, client):
    ids = embedder.tokenizer.encode("the cat")
    settings = {"encoding_format": "base64", "dimensions": 3, "side": "query", "user": "me"}
    (entry,) = client.post("embeddings", model="vectors", input="the cat", **settings)["data"]
    vector = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
    assert np.array_equal(vector, expected(embedder, ids, 3, seed=1))
    assert np.linalg.norm(vector) == pytest.approx(1)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": ""}, "input", "text 0 is empty"),
        ({"input": ["a", ""]}, "input", "text 1 is empty"),
        ({"input": []}, "input", "must be a text"),
        ({"input": [[]]}, "input", "must be a text"),
        ({"input": ["a"] * 2049}, "input", "2,049"),
        ({"input": [300]}, "input", "not a token id"),
        ({"input": [-1]}, "input", "not a token id"),
        ({"input": [True]}, "input", "must be a text"),
        ({"input": "the cat sat " * 100}, "input", "64 tokens"),
        ({"input": [[1] * 65]}, "input", "64 tokens"),
        ({"input": "a", "dimensions": 9}, "dimensions", "8 numbers"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "side": "left"}, "side", "'query' or 'document'"),
    ],
)
def test_refusals(client, body, param, words):
    error = client.refusal("embeddings", model="vectors", **body)
    assert error["param"] == param and words in error["message"]
