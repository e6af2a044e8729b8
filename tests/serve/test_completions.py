"""POST /v1/completions: what the model is asked, and how its answer is written."""

import json
from itertools import pairwise

import numpy as np
import pytest

from megagpt.data.fim import fim_prompt
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer
from megagpt.serve.interface import NewToken
from megagpt.serve.spelling import CompletionLogprobs, Spelling
from tests.serve.fake import WINDOW, tokenizer

TEXT = "the cat sat on the mat"
PARTY = "naïve café 🎉"


def text_of(model, ids):
    return b"".join(model.tokenizer.decode_bytes([one]) for one in ids).decode(errors="replace")


def greedy(model, last, count):
    """The likeliest tokens, one after another, up to the end of a text."""
    ids = [int(model.logprobs[last].argmax())]
    while len(ids) < count and ids[-1] != model.tokenizer.end_of_text_id:
        ids.append(int(model.logprobs[ids[-1]].argmax()))
    return ids


def test_all_forms_of_prompts(model, client):
    ids = model.tokenizer.encode(TEXT)
    other = model.tokenizer.encode("t")
    for prompt, expected in (
        (TEXT, [ids]),
        ([TEXT, "t"], [ids, other]),
        (ids, [ids]),
        ([ids, other], [ids, other]),
        (None, [[model.tokenizer.end_of_text_id]]),
        (END_OF_TEXT, [[model.tokenizer.end_of_text_id]]),
        ("", [[model.tokenizer.end_of_text_id]]),
    ):
        model.requests.clear()
        answer = client.post("completions", model="gpt", prompt=prompt, temperature=0, max_tokens=5)
        assert [request.prompt for request in model.requests] == expected
        generated = [greedy(model, one[-1], 5) for one in expected]
        assert [choice["text"] for choice in answer["choices"]] == [text_of(model, one) for one in generated]
        tokens = sum(map(len, expected)), sum(map(len, generated))
        assert answer["usage"] == {
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "total_tokens": sum(tokens),
        }


def test_choices_are_numbered_prompt_by_prompt(model, client):
    answer = client.post("completions", model="gpt", prompt=["the", "cat", "the"], n=2, seed=5, max_tokens=8)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    # A prompt that is there twice gets further random numbers, as its second choice does.
    assert [request.choice for request in model.requests] == [0, 1, 0, 1, 2, 3]
    assert {request.settings.seed for request in model.requests} == {5}
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts)) == 6
    again = client.post("completions", model="gpt", prompt="the", n=4, seed=5, max_tokens=8)
    assert [choice["text"] for choice in again["choices"]] == [texts[0], texts[1], texts[4], texts[5]]


def test_without_a_seed_answers_differ(model, client):
    answers = [client.post("completions", model="gpt", prompt="the", max_tokens=12) for _ in range(2)]
    assert answers[0]["choices"][0]["text"] != answers[1]["choices"][0]["text"]
    assert answers[0]["id"] != answers[1]["id"]


@pytest.mark.parametrize("prompt", [TEXT, PARTY])
@pytest.mark.parametrize("alternatives", [0, 3])
def test_echo_with_logprobs(model, client, prompt, alternatives):
    ids = model.tokenizer.encode(prompt)
    settings = {"echo": True, "logprobs": alternatives, "temperature": 0, "max_tokens": 4}
    (choice,) = client.post("completions", model="gpt", prompt=prompt, **settings)["choices"]
    everything = ids + greedy(model, ids[-1], 4)
    assert choice["text"] == text_of(model, everything)
    lists = choice["logprobs"]
    expected = [model.logprobs[a, b] for a, b in pairwise(everything)]
    assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
    np.testing.assert_allclose(lists["token_logprobs"][1:], expected)
    # A token begins where the text of those before it ends; a character that is not whole is not counted yet.
    so_far = [b"".join(model.tokenizer.decode_bytes([one]) for one in ids[:count]) for count in range(len(ids))]
    assert lists["text_offset"][: len(ids)] == [len(part.decode(errors="ignore")) for part in so_far]
    for place, top in enumerate(lists["top_logprobs"][1:]):
        if not alternatives:
            assert top == {}
            continue
        best = np.sort(model.logprobs[everything[place]])[::-1][:3]
        np.testing.assert_allclose(sorted(top.values())[-3:], best[::-1])
        assert lists["token_logprobs"][place + 1] in top.values()
        assert len(top) == 3 + (expected[place] < best[-1])
    spelled = [
        bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:") else token.encode()
        for token in lists["tokens"]
    ]
    assert b"".join(spelled[: len(ids)]) == prompt.encode()
    assert (prompt == PARTY) == any(token.startswith("bytes:") for token in lists["tokens"][: len(ids)])


def test_scoring_generates_nothing(model, client):
    body = {"model": "gpt", "prompt": [TEXT, "the cat"], "echo": True, "logprobs": 1, "max_tokens": 0}
    answer = client.post("completions", **body)
    assert [choice["text"] for choice in answer["choices"]] == [TEXT, "the cat"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == model.made == 0
    ids = model.tokenizer.encode(TEXT)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(ids)
    chunks = client.stream("completions", **body)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [TEXT, "the cat"]
    (choice,) = client.post("completions", model="gpt", prompt=TEXT, max_tokens=0)["choices"]
    assert choice == {"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}


def test_the_best_of_several_by_mean_logprob(model, client):
    body = {"model": "gpt", "prompt": ["the", "cat"], "seed": 3, "logprobs": 0, "max_tokens": 9}
    answer = client.post("completions", **body, n=5)
    best = client.post("completions", **body, n=2, best_of=5)
    for first in (0, 5):
        ordered = sorted(
            answer["choices"][first : first + 5], key=lambda choice: -np.mean(choice["logprobs"]["token_logprobs"])
        )
        chosen = best["choices"][first // 5 * 2 : first // 5 * 2 + 2]
        assert [choice["text"] for choice in chosen] == [choice["text"] for choice in ordered[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"] == answer["usage"]


def test_a_stream_says_what_the_whole_answer_says(client):
    body = {"model": "gpt", "prompt": [PARTY, "the"], "n": 2, "seed": 11, "echo": True, "logprobs": 2}
    body |= {"stop": ["s"], "max_tokens": 30}
    whole = client.post("completions", **body)
    chunks = client.stream("completions", **body, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for piece in pieces for value in piece["logprobs"][name]] == values
        assert {piece["finish_reason"] for piece in pieces[:-1]} <= {None}
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]


def test_stop_strings_are_looked_for_in_new_text_only(model, client):
    ids = model.tokenizer.encode("the cat")
    text = text_of(model, greedy(model, ids[-1], 12))
    stop = text[4:6]
    (choice,) = client.post(
        "completions", model="gpt", prompt="the cat", stop=["the", stop], temperature=0, max_tokens=12, echo=True
    )["choices"]
    assert choice["text"] == "the cat" + text[: min(text.find(one) for one in ("the", stop) if one in text)]
    assert choice["finish_reason"] == "stop"


def test_a_suffix_goes_into_the_prompt(model, client):
    client.post("completions", model="gpt", prompt="def f(", suffix="):\n", max_tokens=2)
    assert model.requests[-1].prompt == fim_prompt(model.tokenizer, "def f(", "):\n")
    client.post("completions", model="gpt", suffix="):\n", max_tokens=2)
    assert model.requests[-1].prompt == fim_prompt(model.tokenizer, "", "):\n")


def test_how_tokens_shall_be_chosen_reaches_the_model(model, client):
    given = {"temperature": 0.5, "top_p": 0.25, "seed": -7, "frequency_penalty": -1.5, "presence_penalty": 2}
    given |= {"top_k": 3, "repetition_penalty": 1.25}
    client.post("completions", model="gpt", prompt="t", stop=["a", "b"], logit_bias={"5": -100, "7": 1.5}, **given)
    settings = model.requests[-1].settings
    assert {name: getattr(settings, name) for name in given} == given
    assert settings.stop == ("a", "b") and settings.max_new_tokens == 16
    assert dict(settings.logit_bias) == {5: -100, 7: 1.5}
    client.post("completions", model="gpt", prompt="t", temperature=1e-300, top_p=0)
    settings = model.requests[-1].settings
    assert settings.temperature == 0 and 0 < settings.top_p < 1e-6


def test_text_never_becomes_special_tokens(model, client):
    special = set(model.tokenizer.special_ids.values())
    hostile = "".join(model.tokenizer.special_ids)
    for prompt in (f"a{END_OF_TEXT}b", f" {END_OF_TEXT}"):
        client.post("completions", model="gpt", prompt=prompt, max_tokens=1)
        assert not special & set(model.requests[-1].prompt)
    model.window = 10 * WINDOW
    client.post("completions", model="gpt", prompt=hostile, suffix=hostile, max_tokens=1)
    assert sum(token in special for token in model.requests[-1].prompt) == 3  # those of filling in the middle
    client.post("chat/completions", model="gpt", messages=[{"role": "user", "content": hostile}], max_tokens=1)
    assert sum(token in special for token in model.requests[-1].prompt) == 3  # user, end of text, assistant


def test_what_a_default_length_is(model, client):
    ids = list(range(WINDOW - 4))
    assert client.post("completions", model="gpt", prompt=ids, temperature=0)["usage"]["completion_tokens"] <= 4
    assert model.requests[-1].settings.max_new_tokens == 4
    error = client.refusal("completions", model="gpt", prompt=ids, max_tokens=5)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert "4 at most" in error["message"]


def test_tokens_that_read_alike_keep_the_likelier_value():
    spec = json.loads(tokenizer().to_json())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    twin = len(spec["model"]["vocab"])
    spec["added_tokens"].append({"id": twin, "content": " cat", **flags})
    made = Tokenizer(json.dumps(spec).encode())
    (cat,) = made.encode("the cat")[1:]
    assert twin != cat or made.decode([twin]) == " cat"
    cat = spec["model"]["vocab"]["Ġcat"]
    lists = CompletionLogprobs(Spelling(made)).lists(
        [NewToken(twin, " cat", -3.0, ((cat, -1.0), (made.end_of_text_id, float("-inf"))), None)]
    )
    assert lists["top_logprobs"] == [{" cat": -1.0, END_OF_TEXT: -9999.0}]
