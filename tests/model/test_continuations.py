"""Scores of continuations equal those of the whole context's logits, whatever is shared, and in every layout."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import ParallelConfig
from megagpt.errors import ConfigError, DataError, TrainingDiverged
from tests.model.tiny import GPT3, LLAMA, VOCAB, build, tokenizer

WINDOW = GPT3.sequence_length
MODELS = {"banded": GPT3, "llama": LLAMA}


def scorer(model, batch_tokens=None, prefix_memory=1.0, **parallel):
    from megagpt.model.continuations import ContinuationScorer

    return ContinuationScorer(*build(model, **parallel), tokenizer(), batch_tokens, prefix_memory)


def some_requests(seed: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Questions after demonstrations that many of them share, with one to three answers that often begin alike."""
    rng = random.Random(seed)
    demonstrations = [rng.choices(range(VOCAB), k=rng.randrange(1, 9)) for _ in range(5)]
    requests = []
    while len(requests) < count:
        chosen = rng.choices(demonstrations, k=rng.randrange(4))
        context = [token for demonstration in chosen for token in demonstration] + rng.choices(range(3), k=2)
        for _ in range(rng.randrange(1, 4)):
            requests.append((context, rng.choices(range(4), k=rng.randrange(1, 6))))
    return [(context, answer) for context, answer in requests if len(context) + len(answer) <= WINDOW + 1]


def expected_scores(gpt, requests) -> list[tuple[np.ndarray, np.ndarray]]:
    """By the softmax of all logits of each request alone."""
    found = []
    for context, continuation in requests:
        tokens = torch.tensor([[*context, *continuation]])[:, :-1]
        with torch.no_grad():
            logits = gpt.eval()(tokens, torch.arange(tokens.shape[1])[None], None)
        logprobs = logits[0, -len(continuation) :, :VOCAB].log_softmax(-1)
        chosen = torch.tensor(continuation)
        found.append((logprobs.gather(-1, chosen[:, None])[:, 0].numpy(), (logprobs.argmax(-1) == chosen).numpy()))
    return found


def same(scores, expected) -> None:
    assert len(scores) == len(expected)
    for (logprobs, greedy), (wanted, wanted_greedy) in zip(scores, expected, strict=True):
        np.testing.assert_allclose(logprobs, wanted, atol=1e-4, rtol=0)
        assert greedy.tolist() == wanted_greedy.tolist()


def prefixes(requests) -> set[tuple[int, ...]]:
    inputs = [(*context, *continuation)[:-1] for context, continuation in requests]
    return {tokens[: end + 1] for tokens in inputs for end in range(len(tokens))}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.usefixtures("one_rank")
def test_equals_the_softmax_of_all_logits_and_computes_each_prefix_once(model, monkeypatch):
    from megagpt.model import token_tree
    from megagpt.model.generation import Generator

    requests, went_in = some_requests(0, 120), []
    ours = scorer(MODELS[model])
    expected = expected_scores(ours.modules[0], requests)
    run = Generator.through_stages

    def spy(generator, tokens, current):
        went_in.append(len(tokens))
        return run(generator, tokens, current)

    monkeypatch.setattr(Generator, "through_stages", spy)
    for branches in (256, 3, 0):  # with 3 and 0, most of what is shared stays in the pool
        monkeypatch.setattr(token_tree, "BRANCHES", branches)
        for batch_tokens, memory in ((2048, 1.0), (30, 0.0)):
            ours.batch_tokens, went_in[:] = batch_tokens, []
            ours.kept_tokens = WINDOW if memory == 0 else 10_000
            same(ours.score(requests), expected)
            assert sum(went_in) == len(prefixes(requests))
            assert max(went_in) <= max(batch_tokens, WINDOW + branches)
    times = 6  # that they were scored
    assert ours.counts.requests == times * len(requests)
    assert ours.counts.asked == times * sum(len(context) + len(answer) - 1 for context, answer in requests)
    assert ours.counts.computed == times * len(prefixes(requests))
    assert ours.counts.reused == 1 - ours.counts.computed / ours.counts.asked > 0.5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.usefixtures("one_rank")
def test_odd_requests(model):
    ours = scorer(MODELS[model])
    long = [number % 7 for number in range(WINDOW)]
    requests = [
        ([1], [2]),
        ([1], [2]),  # the same again
        ([1], [2, 3]),  # goes on from it
        ([1], [3]),  # the same context, another token
        (long, [5]),  # the whole window
        (long[:1], [*long[1:], 5]),  # the same tokens, asked for after the first
        (long[:20], long[20:23]),  # a prefix of others
        ([VOCAB - 1] * 39, [0, VOCAB - 1]),
    ]
    same(ours.score(requests), expected_scores(ours.modules[0], requests))
    for request in requests:
        same(ours.score([request]), expected_scores(ours.modules[0], [request]))
    assert ours.score([]) == []


@pytest.mark.usefixtures("one_rank")
def test_greedy_tokens_are_those_of_the_generator_and_of_equal_ones_the_first():
    from megagpt.model.generation import GenerationConfig

    ours = scorer(LLAMA)
    prompts = [[7, 8, 9], [3], [100, 200]]
    completions = ours.generator.generate(prompts, GenerationConfig(max_new_tokens=9, temperature=0.0))
    scores = ours.score([(prompt, c.tokens) for prompt, c in zip(prompts, completions, strict=True)])
    for score, completion in zip(scores, completions, strict=True):
        assert score.greedy.all()
        np.testing.assert_allclose(score.logprobs, completion.logprobs, atol=1e-4, rtol=0)
    best = completions[0].tokens[0]
    weight = ours.modules[0].output_layer.weight
    with torch.no_grad():
        for other in (best - 1, best + 1):
            before = weight[other].clone()
            weight[other] = weight[best]
            first, second = ours.score([(prompts[0], [min(best, other)]), (prompts[0], [max(best, other)])])
            assert first.logprobs == second.logprobs
            assert (first.greedy.item(), second.greedy.item()) == (True, False)
            weight[other] = before


@pytest.mark.usefixtures("one_rank")
def test_logits_are_computed_where_they_are_asked_for_and_in_pieces(monkeypatch):
    from megagpt.model import continuations
    from megagpt.model.gpt import GPT

    requests, pieces = some_requests(1, 60), []
    ours = scorer(GPT3)
    expected = expected_scores(ours.modules[0], requests)
    run = GPT.vocabulary_logits

    def spy(gpt, hidden, gather=False):
        pieces.append(len(hidden))
        return run(gpt, hidden, gather)

    monkeypatch.setattr(GPT, "vocabulary_logits", spy)
    monkeypatch.setattr(continuations, "LOGITS", 7 * VOCAB)
    same(ours.score(requests), expected)
    asked = {
        (*context, *answer[:count]) for context, answer in requests for count in range(len(answer))
    }  # after each of these prefixes
    assert sum(pieces) == len(asked)
    assert max(pieces) == 7


@pytest.mark.usefixtures("one_rank")
def test_memory_of_kept_prefixes_is_bounded(monkeypatch):
    from megagpt.model import token_tree
    from megagpt.model.tree_pass import TokenPool

    monkeypatch.setattr(token_tree, "BRANCHES", 0)
    sizes, held, take = [], [], TokenPool.take

    def spy(pool, count):
        taken = take(pool, count)
        sizes.append(pool.size)
        held.append(pool.size - pool.free)
        assert len(taken) == count
        return taken

    monkeypatch.setattr(TokenPool, "take", spy)
    requests = some_requests(2, 150)
    for memory, limit in ((0.0, WINDOW), (60 / 2**30 * 4 * 2 * 32 * 4, 60)):  # 4 layers, 2 x 32 numbers, 4 bytes
        ours, held[:], sizes[:] = scorer(GPT3, prefix_memory=memory), [], []
        assert ours.kept_tokens == limit
        same(ours.score(requests), expected_scores(ours.modules[0], requests))
        assert max(held) <= max(sizes) <= limit


def _score_in_layouts(layouts: list[dict]) -> list:
    from megatron.core import parallel_state

    from megagpt.model import token_tree
    from megagpt.parallel import launch

    results = []
    for layout in layouts:
        launch.initialize(ParallelConfig(**layout), seed=0)
        for model in MODELS.values():
            ours = scorer(model, 100, **layout)
            modes = [module.config.sequence_parallel for module in ours.modules]
            token_tree.BRANCHES = 4
            results.append([tuple(score) for score in ours.score(some_requests(3, 50))])
            assert [module.config.sequence_parallel for module in ours.modules] == modes
        parallel_state.destroy_model_parallel()
    return results


@pytest.mark.usefixtures("one_rank")
def test_layouts_equal_one_rank():
    layouts = [  # on four ranks, so that the first three have two replicas
        {"tensor_parallel_size": 2, "sequence_parallel": True},
        {"pipeline_parallel_size": 2},
        {"pipeline_parallel_size": 2, "virtual_pipeline_size": 2},
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "sequence_parallel": True},
    ]
    requests = some_requests(3, 50)
    expected = [expected_scores(scorer(model).modules[0], requests) for model in MODELS.values()]
    for rank in run_distributed(_score_in_layouts, 4, layouts):
        for ours, theirs in zip(rank, expected * len(layouts), strict=True):
            same(ours, theirs)


@pytest.mark.usefixtures("one_rank")
def test_progress_counts_each_request_once():
    done = []
    requests = some_requests(4, 90)
    scorer(GPT3, batch_tokens=20).score(requests, done.append)
    assert sum(done) == len(requests) and len(done) > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.usefixtures("one_rank")
def test_logits_that_are_not_finite_are_an_error(value):
    ours = scorer(LLAMA)
    with torch.no_grad():
        ours.modules[0].embedding.word_embeddings.weight[9] = value
    fine, wrong = ([1, 2], [3]), ([1, 9], [3])
    with pytest.raises(TrainingDiverged, match="logits are not finite"):
        ours.score([fine, wrong, fine])
    assert np.isfinite(ours.score([fine])[0].logprobs).all()
    with torch.no_grad():
        ours.modules[0].output_layer.weight[7] = value
    with pytest.raises(TrainingDiverged, match="logits are not finite"):
        ours.score([fine])


@pytest.mark.usefixtures("one_rank")
def test_bad_requests_and_models_are_refused():
    from megagpt.model.continuations import ContinuationScorer

    ours = scorer(GPT3)
    for request, message in (
        (([], [1]), "request 1 has an empty context"),
        (([1], []), "request 1 has an empty continuation"),
        (([1] * 40, [1, 2]), r"request 1 has a context of 40 .* continuation of 2, .*sequence_length of 40 .* 41"),
        (([1], [VOCAB]), rf"request 1 has a token that is not in 0..{VOCAB - 1}"),
        (([-1], [1]), "request 1 has a token"),
    ):
        with pytest.raises(DataError, match=message):
            ours.score([([1], [1]), request])
    modules, config = build(GPT3)
    reward = replace(config, model=replace(config.model, head="scalar"))
    with pytest.raises(ConfigError, match="model's head is scalar"):
        ContinuationScorer(modules, reward, tokenizer())
