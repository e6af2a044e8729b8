"""Generated tokens equal transformers', uncached ones, those of every prompt alone, and those of every layout."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import ParallelConfig
from megagpt.errors import ConfigError, DataError, TrainingDiverged
from tests.model.tiny import GPT3, LLAMA, PROMPTS, VOCAB, build, generator, same

GREEDY = {"temperature": 0.0, "max_new_tokens": 20}
SAMPLED = {"temperature": 1.4, "top_k": 60, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 3, "max_new_tokens": 20}


def settings(**values):
    from megagpt.model.generation import GenerationConfig

    return GenerationConfig(**values)


@pytest.mark.parametrize("model", [GPT3, LLAMA])
@pytest.mark.usefixtures("one_rank")
def test_cached_tokens_are_the_uncached_ones(model):
    ours = generator(model)
    completions = ours.generate(PROMPTS, settings(**GREEDY))
    assert len({tuple(completion.tokens) for completion in completions}) > 3
    same_without_cache(ours, completions)


def same_without_cache(ours, completions) -> None:
    """Greedy completions of PROMPTS have the tokens and log-probabilities of the model's plain forward pass."""
    gpt = ours.modules[0].eval()
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        start = ours.tokenizer.encode(prompt) or [ours.tokenizer.end_of_text_id]
        tokens = torch.tensor([start + completion.tokens])
        with torch.no_grad():  # every prefix at once: attention is causal
            logits = gpt(tokens, torch.arange(tokens.shape[1])[None], None)[0, len(start) - 1 : -1, :VOCAB]
        assert logits.argmax(-1).tolist() == completion.tokens
        expected = logits.log_softmax(-1).amax(-1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.usefixtures("one_rank")
def test_same_tokens_as_transformers(penalty):
    from transformers import GPT2Config, GPT2LMHeadModel

    from megagpt.model.parameters import named_boxes
    from tests.model.hf import to_hugging_face

    model = replace(GPT3, attention_pattern=("dense",))
    ours = generator(model)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=32, n_head=4, n_positions=40, vocab_size=VOCAB)).eval()
    weights = {name: p.detach() for name, p, _ in named_boxes(ours.modules)}
    theirs.load_state_dict(to_hugging_face(weights, model, theirs))
    end = ours.tokenizer.end_of_text_id
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    ids = [ours.tokenizer.encode(prompt) or [end] for prompt in PROMPTS]
    completions = ours.generate(ids, settings(**GREEDY, repetition_penalty=penalty))
    for prompt, completion in zip(ids, completions, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), repetition_penalty=penalty, **options)
        assert prompt + completion.tokens == expected[0].tolist()
    if penalty == 1:  # with a penalty, transformers counts its padding as a token that was seen
        longest = max(map(len, ids))
        padded = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in ids])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in ids])
        together = theirs.generate(padded, attention_mask=mask, **options)[:, longest:].tolist()
        assert [row[: len(c.tokens)] for row, c in zip(together, completions, strict=True)] == [
            completion.tokens for completion in completions
        ]


@pytest.mark.parametrize("model", [GPT3, LLAMA])
@pytest.mark.usefixtures("one_rank")
def test_a_batch_gives_what_each_prompt_gives_alone(model):
    ours = generator(model)
    for choice in (settings(**GREEDY), settings(**SAMPLED, stop=("e", " "))):
        alone = [ours.generate([prompt], choice)[0] for prompt in PROMPTS]
        same(ours.generate(PROMPTS, choice), alone)
        same(ours.generate(PROMPTS[::-1], choice), alone[::-1])
        ours.batch_size = 2
        same(ours.generate(PROMPTS, choice), alone)
        ours.batch_size = 32


@pytest.mark.parametrize("model", [GPT3, LLAMA])
@pytest.mark.usefixtures("one_rank")
def test_places_of_ended_sequences_go_to_those_that_wait(model, monkeypatch):
    from megagpt.model import generation
    from megagpt.model.kv_cache import KVCache

    monkeypatch.setattr(generation, "SPARE_COLUMNS", 1)  # so that the rows must move
    ours, calls = generator(model), []
    prompts = [[7 + number] * (1 + 5 * number % 13) for number in range(14)]
    choice = settings(**SAMPLED, stop=("e", "a"))
    alone = [ours.generate([prompt], choice, [seed])[0] for seed, prompt in enumerate(prompts)]
    assert len({len(completion.tokens) for completion in alone}) > 5
    for call in (KVCache.begin_prompts, KVCache.begin_tokens, KVCache._make_room):

        def spy(cache, *args, call=call):
            calls.append((call.__name__, len(cache._begins)))
            return call(cache, *args)

        monkeypatch.setattr(KVCache, call.__name__, spy)
    ours.batch_size = 4
    same(ours.generate(prompts, choice, range(14)), alone)
    assert ("begin_prompts", 3) in calls and any(name == "_make_room" and rows > 1 for name, rows in calls)
    assert len(calls) < sum(len(completion.tokens) for completion in alone) / 2


@pytest.mark.usefixtures("one_rank")
def test_samples_depend_on_the_seed_and_on_nothing_else():
    ours = generator(GPT3)
    first, second, other = ours.generate(["the", "the", "cat"], settings(seed=1))
    assert first.tokens != second.tokens  # equal prompts get samples of their own
    torch.manual_seed(99)
    same(ours.generate(["the", "the", "cat"], settings(seed=1)), [first, second, other])
    assert ours.generate(["the"], settings(seed=1, max_new_tokens=5))[0].tokens == first.tokens[:5]
    assert ours.generate(["the"], settings(seed=2))[0].tokens != first.tokens


def _generate_in_layouts(layouts: list[dict]) -> list:
    from megatron.core import parallel_state

    from megagpt.parallel import launch

    results = []
    for layout in layouts:
        launch.initialize(ParallelConfig(**layout), seed=0)
        for model in (GPT3, LLAMA):
            ours = generator(model, **layout)
            for module in ours.modules:
                module.train()
            modes = [module.config.sequence_parallel for module in ours.modules]
            results.append([ours.generate(PROMPTS, settings(**choice)) for choice in (GREEDY, SAMPLED)])
            assert all(module.training for module in ours.modules)
            assert [module.config.sequence_parallel for module in ours.modules] == modes
            if layout.get("sequence_parallel") and "pipeline_parallel_size" not in layout:
                module, tokens = ours.modules[0], torch.arange(8)[None]
                assert module.embedding(tokens, tokens).shape[0] == 4  # of 8: training goes on as before
                module(tokens, tokens, None, labels=tokens).sum().backward()
        parallel_state.destroy_model_parallel()
    return results


@pytest.mark.usefixtures("one_rank")
def test_layouts_equal_one_rank():
    layouts = [  # on four ranks, so that all but the last have two replicas
        {"tensor_parallel_size": 2, "sequence_parallel": True},
        {"pipeline_parallel_size": 2},
        {"pipeline_parallel_size": 2, "virtual_pipeline_size": 2},
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "sequence_parallel": True},
    ]
    expected = [
        [generator(model).generate(PROMPTS, settings(**choice)) for choice in (GREEDY, SAMPLED)]
        for model in (GPT3, LLAMA)
    ]
    for rank in run_distributed(_generate_in_layouts, 4, layouts):
        for ours, theirs in zip(rank, expected * len(layouts), strict=True):
            for completions, alone in zip(ours, theirs, strict=True):
                same(completions, alone)


@pytest.mark.usefixtures("one_rank")
def test_streamed_text_is_the_text_and_stop_strings_cross_tokens():
    ours = generator(GPT3)
    free = ours.generate(PROMPTS, settings(seed=5, max_new_tokens=24))
    # Of every completion, the bytes where two tokens meet: a string that no single token holds.
    pieces = [[ours.tokenizer.decode([token]) for token in completion.tokens] for completion in free]
    meets = [
        left[-1] + right[0]
        for tokens in pieces
        for left, right in pairwise(tokens)
        if left.isascii() and right.isascii() and left and right
    ]
    assert len(meets) > 10
    for stop in meets[::9]:
        choice = settings(seed=5, max_new_tokens=24, stop=stop)
        stream, parts = ours.stream(PROMPTS, choice), [""] * len(PROMPTS)
        while True:
            try:
                index, text = next(stream)
            except StopIteration as end:
                completions = end.value
                break
            assert text
            parts[index] += text
        assert parts == [completion.text for completion in completions]
        for completion, unstopped in zip(completions, free, strict=True):
            assert completion.text == unstopped.text.split(stop)[0]
            assert (completion.finish_reason == "stop") == (stop in unstopped.text)
            assert completion.tokens == unstopped.tokens[: len(completion.tokens)]
            assert len(completion.tokens) == len(completion.logprobs)


@pytest.mark.usefixtures("one_rank")
def test_how_completions_end():
    ours = generator(GPT3)
    end, bias = ours.tokenizer.end_of_text_id, ours.modules[0].decoder.final_layernorm.bias
    short, long = ours.generate([[7, 8], [7] * 35], settings(max_new_tokens=10, temperature=0.0))
    assert (short.finish_reason, len(short.tokens)) == ("length", 10)
    assert (long.finish_reason, len(long.tokens)) == ("context", 5)
    assert ours.generate([[7] * 39], settings(temperature=0.0))[0].finish_reason == "context"
    with torch.no_grad():  # the norm's output points to end-of-text
        bias.copy_(100 * ours.modules[0].embedding.word_embeddings.weight[end])
    (ended,) = ours.generate(["the"], settings(temperature=0.0))
    assert (ended.finish_reason, ended.tokens, ended.text) == ("end_of_text", [end], "")
    with torch.no_grad():
        bias.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        with pytest.raises(TrainingDiverged, match="not finite"):
            ours.generate(["the"], settings(temperature=temperature))


@pytest.mark.usefixtures("one_rank")
def test_padding_of_the_vocabulary_is_never_sampled():
    ours = generator(LLAMA)
    weight = ours.modules[0].output_layer.weight
    with torch.no_grad():
        weight[VOCAB:] = torch.randn(weight[VOCAB:].shape, generator=torch.Generator().manual_seed(0))
        weight[VOCAB:] *= 100
    for completion in ours.generate([[1]] * 8, settings(temperature=3.0, max_new_tokens=30)):
        assert max(completion.tokens) < VOCAB


@pytest.mark.usefixtures("one_rank")
def test_bad_prompts_and_tokenizers_are_refused():
    from megagpt.model.generation import Generator

    ours = generator(GPT3)
    with pytest.raises(DataError, match=r"prompt 1 has 40 tokens.*sequence_length of 40.*at most 39"):
        ours.generate([[1], [1] * 40], settings())
    for token in (-1, VOCAB):
        with pytest.raises(DataError, match="prompt 0 has a token"):
            ours.generate([[token]], settings())
    with pytest.raises(ConfigError, match=r"290 tokens.*model.vocab_size is 280"):
        Generator(*build(replace(GPT3, vocab_size=280)), ours.tokenizer)
    with pytest.raises(DataError, match=r"logit_bias has token 290.*0\.\.289"):
        ours.generate([[1]], settings(logit_bias={VOCAB: 1.0}))
    assert ours.generate([], settings()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("repetition_penalty", 0.0),
        ("stop", ("a", "")),
        ("frequency_penalty", float("inf")),
        ("presence_penalty", float("nan")),
        ("logit_bias", {3: float("nan")}),
    ],
)
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is "):
        settings(**{name: value})
