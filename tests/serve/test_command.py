"""`megagpt serve` with real models: other people's evaluators and clients get the numbers that the models give here."""

import json
import random
import re
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch

from megagpt import cli
from megagpt.cli.serve import by_name
from megagpt.config.schema import ParallelConfig
from megagpt.data.chat import Message, chat_prompt
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError
from megagpt.serve.server import bind
from tests.model.tiny import GPT3
from tests.serve.real import Command, save_models

WINDOW = GPT3.sequence_length


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def served(runs):
    made = Command(runs["text"], f"embedder={runs['vectors']}", "--grace", "0.2")
    yield made
    if made.process.poll() is None:
        assert made.end() == 0


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def own(runs):
    """The same model as the evaluator of this project holds it."""
    from megagpt.evaluate.in_context.language_model import MegaGPTLM
    from megagpt.parallel import launch
    from megagpt.stages.weights import load_model

    config, engine, knows = load_model(runs["text"], ParallelConfig())
    yield MegaGPTLM(engine.modules, config, knows)
    launch.shutdown()


def test_lm_eval_gets_the_numbers_of_the_evaluator_in_process(served, own, runs, tmp_path, monkeypatch):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_file=str(runs["text"] / "tokenizer.json"), eos_token="<|endoftext|>"
    ).save_pretrained(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    theirs = LocalCompletionsAPI(
        model="text",
        base_url=f"{served.url}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(tmp_path),
        max_length=WINDOW,
        batch_size=4,
    )
    draw, pairs = random.Random(0), []
    for number in range(12):
        context = draw.choices(range(200), k=draw.randint(1, 25))
        if number % 2:
            continuation = draw.choices(range(200), k=draw.randint(1, 12))
        else:  # what greedy decoding writes
            settings = own._settings({"until": [], "max_gen_toks": 5})
            continuation = own.generator.generate([context], settings)[0].tokens
        pairs.append((("", ""), context, continuation))
    scores = theirs._loglikelihood_tokens(pairs)
    expected = own._loglikelihood_tokens(pairs, disable_tqdm=True)
    np.testing.assert_allclose([one for one, _ in scores], [one for one, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in scores} == {True, False}

    wanted = {"until": ["t", "\n"], "max_gen_toks": 10, "temperature": 0.0}
    texts = ["the cat", "def f(x", "naïve café", "a"]
    asked = [Instance("generate_until", {}, (text, dict(wanted)), number) for number, text in enumerate(texts)]
    assert theirs.generate_until(asked) == own.generate_until(asked, disable_tqdm=True)


def test_greedy_text_is_that_of_transformers(client, runs, tmp_path):
    from transformers import GPTNeoForCausalLM

    assert cli.run(["checkpoint", "convert", str(runs["text"]), str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    theirs = GPTNeoForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    knows = Tokenizer.load(runs["text"] / "tokenizer.json")
    for prompt in ("the cat sat", "def f(x):"):
        ids = torch.tensor([knows.encode(prompt)])
        made = theirs.generate(
            ids, max_new_tokens=20, do_sample=False, eos_token_id=knows.end_of_text_id, pad_token_id=0
        )
        ours = client.completions.create(model="text", prompt=prompt, max_tokens=20, temperature=0)
        assert ours.choices[0].text == knows.decode(made[0, ids.shape[1] :].tolist())


def test_every_endpoint_answers(client, own):
    text, embedder = client.models.list().data
    assert text.abilities == ["completions", "suffix", "chat", "edits"]
    assert (embedder.id, embedder.abilities, embedder.dimensions) == ("embedder", ["embeddings"], GPT3.hidden_size)
    settings = own._settings({"until": [], "max_gen_toks": 8})

    def expected(ids: list[int]) -> str:
        return own.generator.generate([ids], settings)[0].text

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the <|assistant|>"}]
    prompt = chat_prompt(own.tokenizer, [Message(**message) for message in messages])
    greedy = {"model": "text", "temperature": 0}
    chunks = client.chat.completions.create(messages=messages, max_tokens=8, stream=True, **greedy)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected(prompt)
    made = client.completions.create(prompt="def f(", suffix="return x", max_tokens=8, **greedy)
    assert made.choices[0].text == expected(own.generator.prompts.fim_prompt("def f(", "return x"))
    edit = client.post("/edits", body={"instruction": "Fix.", "input": "a", **greedy}, cast_to=object)
    assert edit["choices"][0]["text"].startswith(
        expected(chat_prompt(own.tokenizer, [Message("user", "Fix.\n\na")])).rstrip("\ufffd")
    )
    vectors = [one.embedding for one in client.embeddings.create(model="embedder", input=["the cat", "a"]).data]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    # After all have ended, more come at a time than ever before.
    many = client.completions.create(model="text", prompt="a", n=40, max_tokens=3, seed=1)
    assert len(many.choices) == 40


def test_sigterm_in_the_middle_of_a_stream(served):
    body = {"model": "text", "prompt": [[one] for one in range(100)], "max_tokens": WINDOW - 1, "stream": True}
    body |= {"logit_bias": {"261": -100}}
    headers = {"Authorization": "Bearer secret"}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: {")
        assert served.end() == 0
        *_, last, _ = lines
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_closing"
    assert "Traceback" not in served.log


def test_names_of_models(tmp_path):
    assert by_name(("runs/ppo", "code=runs/a=b")) == {"ppo": Path("runs/ppo"), "code": Path("runs/a=b")}
    assert by_name(("runs/x/checkpoints/step_00000010", "./y=z/run")) == {
        "x": Path("runs/x/checkpoints/step_00000010"),
        "run": Path("y=z/run"),
    }
    for given, words in ((("a/run", "b/run"), "other=b/run"), (("runs/a b",), "model=runs/a b"), (("/",), "model=/")):
        with pytest.raises(ConfigError, match=words):
            by_name(given)


def test_what_cannot_be_served_is_said_at_once(runs, capsys):
    taken = bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    taken.listen()
    for arguments, error in (
        ([runs["text"], "--port", port], f"cannot listen on 127.0.0.1 port {port}"),
        ([runs["text"], "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        ([runs["text"], "--api-key", "a b"], "printable ASCII"),
        ([runs["text"], runs["text"]], "both be the model text"),
    ):
        with pytest.raises(ConfigError, match=re.escape(error)):
            cli.run(["serve", *map(str, arguments)])
    taken.close()
