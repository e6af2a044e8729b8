"""Models behind the event loop: the generator's and the embedder's own results, on one rank and on two."""

import asyncio
import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.chat import grow_for_chat
from megagpt.data.code_tokens import grow_for_code
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, DataError, DistributedError, MegaGPTError, TrainingDiverged
from megagpt.model.generation_config import GenerationConfig
from megagpt.serve.interface import Busy, GenerateRequest, Limits, NewToken
from tests.memory import peak_growth
from tests.runs import save_random_run

TEXT = "the cat sat on the mat and the dog on the log; naïve café 中文.\n" * 5
SHAPE = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "sequence_length": 64, "init_std": 0.3}
LIMITS = Limits(max_rows=4, max_waiting=40, chunk_tokens=8, prefix_memory=1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Folders of runs of a language model that knows all special tokens, of an embedding and of a reward model."""
    folder = tmp_path_factory.mktemp("runs")
    plain = train_tokenizer([TEXT], 280)
    grown = grow_for_chat(grow_for_code(plain, longest_run=4))
    fp32 = OptimConfig(precision="fp32")
    kinds = {"text": ("tokens", grown), "plain": ("tokens", plain), "vectors": ("embedding", plain)}
    kinds["reward"] = ("scalar", grown)
    return {
        name: save_random_run(folder / name, Config(model=ModelConfig(**SHAPE, head=head), optim=fp32, seed=seed), own)
        for seed, (name, (head, own)) in enumerate(kinds.items())
    }


@pytest.fixture(autouse=True)
def left():
    """Leave the groups that a test has formed."""
    from megagpt.parallel import launch

    yield
    launch.shutdown()


def requests() -> list[GenerateRequest]:
    """Of many lengths and settings; three times the same prompt, as three choices of one request have it."""
    draw, found = random.Random(2), []
    for number in range(14):
        prompt = draw.choices(range(200), k=draw.choice((1, 5, 20, 40)))
        settings = GenerationConfig(draw.randint(1, 20), draw.choice((0.0, 1.3)), stop=("e",), seed=number)
        found.append(GenerateRequest(prompt, settings, top_logprobs=number % 3, prompt_logprobs=(None, 1)[number % 2]))
    again = GenerateRequest(list(range(30)), GenerationConfig(9, 1.5, seed=4))
    return [*found, *(replace(again, choice=choice) for choice in range(3))]


async def complete(model, request: GenerateRequest) -> tuple[str, list[int], list]:
    """Text, tokens and everything that came, of one request."""
    items = [item async for item in model.generate(request)]
    tokens = [item for item in items if isinstance(item, NewToken)]
    assert [token.finish_reason for token in tokens[:-1]] == [None] * (len(tokens) - 1)
    assert tokens[-1].finish_reason
    return "".join(token.text for token in tokens), [token.token for token in tokens], items


async def complete_all(model, wanted: list[GenerateRequest]) -> list[tuple]:
    return await asyncio.gather(*(complete(model, request) for request in wanted))


def expected_completions(run: Path) -> list[tuple[str, list[int]]]:
    """What the generator makes of every request, alone."""
    from megagpt.model.generation import Generator
    from megagpt.stages.weights import load_model

    config, engine, tokenizer = load_model(run, ParallelConfig())
    generator = Generator(engine.modules, config, tokenizer)
    *single, _, _, last = requests()
    made = [generator.generate([request.prompt], request.settings)[0] for request in single]
    made += generator.generate([last.prompt] * 3, last.settings)
    return [(completion.text, completion.tokens) for completion in made]


def test_requests_together_get_what_the_generator_makes_of_each_alone(runs):
    from tests.serve.in_process import served

    expected = expected_completions(runs["text"])
    with served({"text": runs["text"], "plain": runs["plain"]}, ParallelConfig(), LIMITS) as host:
        text, plain = host.models
        assert (text.name, text.window, text.dimensions) == ("text", 64, 0)
        assert text.created > 1.6e9
        assert text.abilities == {"completions", "suffix", "chat", "edits"}
        assert plain.abilities == {"completions"}
        found = asyncio.run(complete_all(text, requests()))
        load = text.load()
        other = asyncio.run(complete(plain, requests()[0]))
    assert [(written, tokens) for written, tokens, _ in found] == expected
    assert other[1] != expected[0][1]
    for request, (_, _, items) in zip(requests(), found, strict=True):
        if request.prompt_logprobs is not None:
            prompt = items.pop(0)
            assert [token.token for token in prompt] == list(request.prompt)
            assert prompt[0].logprob is None and all(len(token.top_logprobs) == 1 for token in prompt[1:])
            assert all(token.logprob <= token.top_logprobs[0][1] < 0 for token in prompt[1:])
        assert all(len(token.top_logprobs) == request.top_logprobs for token in items)
        if request.settings.temperature == 0 and request.top_logprobs:
            assert [token.top_logprobs[0] for token in items] == [(token.token, token.logprob) for token in items]
    assert (load.running, load.waiting) == (0, 0)
    assert load.prompt_tokens == sum(len(request.prompt) for request in requests())
    assert load.new_tokens == sum(len(tokens) for _, tokens in expected)
    assert load.reused_tokens >= 2 * 29


def test_closing_frees_the_place_and_a_full_queue_is_busy(runs):
    from tests.serve.in_process import served

    long = GenerateRequest([5, 6], GenerationConfig(60, logit_bias={0: -100.0}))

    async def close_in_the_middle(model) -> None:
        streams = [model.generate(replace(long, choice=number)) for number in range(3)]
        with pytest.raises(Busy) as busy:
            model.generate(long)
        assert 1 <= busy.value.retry_after <= 60
        await anext(streams[0])
        await streams[0].aclose()
        await streams[0].aclose()
        assert [item async for item in streams[0]] == []
        waits = asyncio.ensure_future(complete(model, replace(long, choice=1)))
        waits_too = [asyncio.ensure_future(anext(stream)) for stream in streams[1:]]
        await asyncio.wait(waits_too)
        for stream in streams[1:]:
            await stream.aclose()
        assert len((await waits)[1]) == 60
        assert (model.load().running, model.load().waiting) == (0, 0)

    with served({"text": runs["text"]}, ParallelConfig(), Limits(max_rows=1, max_waiting=2)) as host:
        (model,) = host.models
        with pytest.raises(DataError, match="64 tokens"):
            asyncio.run(complete(model, GenerateRequest([1] * 64, GenerationConfig())))
        with pytest.raises(DataError, match="logit_bias has token 9999"):
            asyncio.run(complete(model, GenerateRequest([1], GenerationConfig(logit_bias={9999: 1.0}))))
        with pytest.raises(ConfigError, match="makes no vectors"):
            asyncio.run(model.embed(["a"], None))
        asyncio.run(close_in_the_middle(model))


def test_vectors_are_the_embedders(runs):
    from megagpt.stages.embedding import load_embedder
    from tests.serve.in_process import served

    texts = [TEXT[start : start + 3 + 5 * start] for start in range(9)]
    with served({"vectors": runs["vectors"]}, ParallelConfig(micro_batch_size=2), LIMITS) as host:
        (model,) = host.models
        assert (model.abilities, model.dimensions) == ({"embeddings"}, 32)

        async def ask() -> list[np.ndarray]:
            tokens = model.tokenizer.encode_batch(texts)
            return await asyncio.gather(
                model.embed(texts, None),
                model.embed(tokens, None),
                model.embed(texts, 8, "query"),
                *(model.embed([text], None) for text in texts),
            )

        whole, by_tokens, short, *single = asyncio.run(ask())
        around = 3  # braces and end-of-text
        assert model.count_tokens(texts) == sum(len(model.tokenizer.encode(text)) + around for text in texts)
        for wrong in ([" "], [[]], [[9999]], [[1] * 64]):
            with pytest.raises(DataError, match="input 0"):
                asyncio.run(model.embed(wrong, None))
        for wrong in (0, 33):
            with pytest.raises(ConfigError, match="32 dimensions"):
                asyncio.run(model.embed(["a"], wrong))
        with pytest.raises(ConfigError, match="writes no text"):
            model.generate(GenerateRequest([1], GenerationConfig()))
        assert (model.load().running, model.load().waiting) == (0, 0)
    embedder = load_embedder(runs["vectors"], ParallelConfig(micro_batch_size=2))
    expected = embedder.embed(texts, "document")
    for found in (whole, by_tokens, np.concatenate(single)):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(short, embedder.embed(texts, "query", 8), atol=1e-5)


def test_other_requests_are_answered_while_long_texts_are_encoded(runs, monkeypatch):
    from tests.serve.in_process import served

    with served({"vectors": runs["vectors"]}, ParallelConfig(), Limits(max_rows=1, max_waiting=1)) as host:
        (model,) = host.models
        encode, may_go_on = model._rows, threading.Event()
        runner = host.host.loop.runners[0]
        work, may_answer = runner.work, threading.Event()

        def slow(*given):
            assert may_go_on.wait(30)  # which the event loop must set meanwhile
            return encode(*given)

        def held():
            assert may_answer.wait(30)  # the first request stays in the queue until the second one is refused
            return work()

        async def ask() -> None:
            monkeypatch.setattr(model, "_rows", slow)
            monkeypatch.setattr(runner, "work", held)
            asked = [asyncio.ensure_future(model.embed(["a", "b"], None)) for _ in range(2)]
            await asyncio.sleep(0.05)
            may_go_on.set()
            await asyncio.wait(asked, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            may_answer.set()
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert sorted(type(one).__name__ for one in found) == ["Busy", "ndarray"]  # still one queue, and bounded
            assert (model.load().running, model.load().waiting) == (0, 0)

        asyncio.run(ask())


def test_what_cannot_be_served_is_refused(runs):
    from tests.serve.in_process import served

    with pytest.raises(ConfigError, match=r"of a reward model or a critic \(model.head=scalar\)"):
        served({"reward": runs["reward"]}, ParallelConfig(), LIMITS).__enter__()
    with pytest.raises(ConfigError, match="take 2 ranks, not 1"):
        served({"text": runs["text"]}, ParallelConfig(tensor_parallel_size=2), LIMITS).__enter__()


def test_a_model_that_fails_ends_the_host_and_every_request(runs):
    from tests.serve.in_process import served

    async def fail(host) -> None:
        (model,) = host.models
        failed = asyncio.ensure_future(host.client.failed())
        with torch.no_grad():
            next(host.host.loop.runners[0].generator.modules[0].parameters()).fill_(float("nan"))
        streams = [model.generate(GenerateRequest([number], GenerationConfig())) for number in range(9)]
        for stream in streams:
            with pytest.raises(TrainingDiverged, match="not finite"):
                await anext(stream)
        with pytest.raises(TrainingDiverged):
            await failed
        with pytest.raises(TrainingDiverged):
            model.generate(GenerateRequest([1], GenerationConfig()))

    with pytest.raises(TrainingDiverged), served({"text": runs["text"]}, ParallelConfig(), LIMITS) as host:
        asyncio.run(fail(host))


def test_leaving_the_context_ends_what_is_being_written(runs):
    from tests.serve.in_process import served

    async def leave(context) -> None:
        with context as host:
            stream = host.models[0].generate(GenerateRequest([5], GenerationConfig(60, logit_bias={0: -100.0})))
            await anext(stream)
        with pytest.raises(MegaGPTError, match="stopping"):
            while True:
                await anext(stream)

    asyncio.run(leave(served({"text": runs["text"]}, ParallelConfig(), LIMITS)))


def test_memory_stays_flat_over_many_requests(runs):
    from tests.serve.in_process import served

    def work(model, seed: int) -> None:
        draw = random.Random(seed)

        async def clients() -> None:
            for _ in range(20):
                some = [draw.choices(range(200), k=draw.randint(1, 50)) for _ in range(10)]
                await complete_all(model, [GenerateRequest(prompt, GenerationConfig(3)) for prompt in some])

        asyncio.run(clients())

    with served({"text": runs["text"]}, ParallelConfig(), replace(LIMITS, prefix_memory=1e-3)) as host:
        (model,) = host.models
        work(model, 0)
        assert peak_growth(lambda: work(model, 1)) < 4 << 20
        assert not host.client._answers and not host.host.loop.runners[0]._rows


def _serve_in(layouts: list[dict], run: Path) -> list:
    from megagpt.serve import model_loop
    from tests.serve.in_process import served

    model_loop.HEARTBEAT_SECONDS = 0.05
    results = []
    for layout in layouts:
        with served({"text": run}, ParallelConfig(**layout), LIMITS) as host:
            if host is None:
                results.append(None)
            else:
                results.append(asyncio.run(complete_all(host.models[0], requests())))
                asyncio.run(asyncio.sleep(0.5))  # many heartbeats
                results[-1] += asyncio.run(complete_all(host.models[0], requests()[:1]))
    results.append(_lose_a_rank(run))
    return results


def _lose_a_rank(run: Path) -> str | None:
    """What the first rank says when another hangs."""
    from megagpt import env
    from megagpt.serve.host import open_models
    from tests.serve.in_process import served

    parallel = ParallelConfig(tensor_parallel_size=2, timeout_minutes=0.05)
    if env.rank() > 0:
        with open_models({"text": run}, parallel, LIMITS):
            return None

    async def ask(host) -> None:
        request = requests()[0]
        with pytest.raises(DistributedError):
            await complete(host.models[0], request)
        await host.client.failed()

    try:
        with served({"text": run}, parallel, LIMITS) as host:
            asyncio.run(ask(host))
    except DistributedError as error:
        return str(error)


def test_tensor_and_pipeline_ranks_serve_what_one_does(runs):
    expected = expected_completions(runs["text"])
    layouts = [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}]
    first, second = run_distributed(_serve_in, 2, layouts, runs["text"])
    for found in first[:2]:
        assert [(text, tokens) for text, tokens, _ in found] == [*expected, expected[0]]
    assert "contact with another rank was lost" in first[2]
    assert second == [None, None, None]
