"""Tasks score with our model as with lm-eval's `hf` back end on the converted weights, in every layout."""

import importlib
import logging
import sys
from dataclasses import replace

import pytest

pytest.importorskip("lm_eval")

from dist import run_distributed

from megagpt.config.schema import ParallelConfig
from megagpt.errors import ConfigError, DataError
from megagpt.parallel import launch
from tests.data.tokenizer_kinds import save
from tests.evaluate.in_context.peers import (
    GPT2,
    GPT_NEO,
    LLAMA,
    MODELS,
    VOCAB,
    build,
    hugging_face_model,
    our_lm,
    their_lm,
    tokenizer,
)
from tests.evaluate.in_context.small_tasks import small_tasks

WINDOW = GPT2.sequence_length


@pytest.fixture(scope="module")
def one_rank():
    launch.initialize(ParallelConfig(), seed=0)
    yield
    launch.shutdown()


def evaluate(lm, tasks: list[dict], **options) -> dict:
    """lm-eval's results, without its text fields."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    results = simple_evaluate(
        model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True, **options
    )
    if results is None:
        return {}
    metrics = {
        (task, name): value
        for task, values in results["results"].items()
        for name, value in values.items()
        if isinstance(value, float) and "stderr" not in name
    }
    answers = {
        (task, sample["doc_id"], place): answer
        for task, samples in results["samples"].items()
        for sample in samples
        for place, (answer,) in enumerate(sample["resps"])
    }
    return metrics | answers


def same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, found in ours.items():
        if isinstance(found, tuple):  # log-probability, greedy
            assert found[0] == pytest.approx(theirs[name][0], abs=1e-4), name
            assert found[1] == theirs[name][1], name
        else:
            assert found == (pytest.approx(theirs[name], rel=1e-5) if isinstance(found, float) else theirs[name]), name


def instances(kind: str, *arguments: tuple) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=place) for place, each in enumerate(arguments)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.usefixtures("one_rank")
def test_tasks_score_as_with_hf(model):
    ours = our_lm(MODELS[model])
    theirs = their_lm(ours.generator.modules, MODELS[model])
    found = evaluate(ours, small_tasks())
    same(found, evaluate(theirs, small_tasks()))
    texts = {value for value in found.values() if isinstance(value, str)}
    assert len(texts) > 10 and ours.cut_requests > 20  # there is something to compare
    assert ours.counts.reused > 0.4


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.usefixtures("one_rank")
def test_greedy_texts_are_greedy_and_ends_of_windows_agree_with_hf(model):
    from megagpt.model.generation import GenerationConfig

    ours = our_lm(MODELS[model])
    theirs = their_lm(ours.generator.modules, MODELS[model], batch_size=3)
    prompts = [[7, 8, 9], [3] * 100, [100, 200]]
    texts = ours.generator.generate(prompts, GenerationConfig(max_new_tokens=8, temperature=0.0))
    requests = [(None, prompt, text.tokens) for prompt, text in zip(prompts, texts, strict=True)]
    requests += [(None, prompt, [*text.tokens[:-1], 1]) for prompt, text in zip(prompts, texts, strict=True)]
    requests += [(None, [5] * length, [6] * count) for length in (1, WINDOW, WINDOW + 9) for count in (1, 2, WINDOW)]
    found = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    same(dict(enumerate(found)), dict(enumerate(theirs._loglikelihood_tokens(requests, disable_tqdm=True))))
    assert [greedy for _, greedy in found[:6]] == [True] * 3 + [False] * 3
    assert ours.cut_requests == 5  # one token more than the window is what it takes


@pytest.mark.parametrize("kind", ["llama2", "llama3", "qwen"])
@pytest.mark.usefixtures("one_rank")
def test_texts_begin_as_with_hf(kind, tmp_path):
    """With bos before texts, and before those without a context, where the tokenizer has one."""
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    from megagpt.data.tokenizer import Tokenizer
    from megagpt.evaluate.in_context.language_model import MegaGPTLM

    folder = save(kind, tmp_path)
    known = Tokenizer.load(folder / "tokenizer.json")
    model = replace(LLAMA, vocab_size=known.vocab_size)
    modules, config = build(model)
    ours = MegaGPTLM(modules, config, known)
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    theirs = HFLM(pretrained=hugging_face_model(modules, model), tokenizer=fast, backend="causal", device="cpu")
    assert ours.prefix_token_id == theirs.prefix_token_id
    asked = [("the cat", " sat on"), ("", "the cat sat"), ("x + 1\n", "def f(x):"), ("the dog ", "ate")]
    assert [ours.tok_encode(text) for pair in asked for text in pair] == [
        theirs.tok_encode(text) for pair in asked for text in pair
    ]
    found = [dict(enumerate(lm.loglikelihood(instances("loglikelihood", *asked)))) for lm in (ours, theirs)]
    same(*found)
    rolled = [("the cat sat on the mat, " * 20,), ("x",)]
    both = [lm.loglikelihood_rolling(instances("loglikelihood_rolling", *rolled)) for lm in (ours, theirs)]
    assert both[0] == pytest.approx(both[1], rel=1e-5)


def _evaluate(lm) -> tuple:
    """Results of tasks (on local rank 0), sampled texts, what was computed."""
    options = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 5}
    texts = lm.generate_until(instances("generate_until", *[("the", options)] * 3, ("a", options), ("dog", options)))
    return evaluate(lm, small_tasks()), texts, lm.counts


def _evaluate_in_layouts(layouts: list[dict]) -> list[tuple]:
    from megatron.core import parallel_state

    found = []
    for layout in layouts:
        launch.initialize(ParallelConfig(**layout), seed=0)
        found.append(_evaluate(our_lm(GPT_NEO, batch_tokens=300, **layout)))
        parallel_state.destroy_model_parallel()
    return found


@pytest.mark.usefixtures("one_rank")
def test_replicas_share_the_requests_and_layouts_equal_one_rank():
    layouts = [{"tensor_parallel_size": 2, "sequence_parallel": True}, {"pipeline_parallel_size": 2}]
    expected, texts, counts = _evaluate(our_lm(GPT_NEO))
    assert len(set(texts[:3])) == 3
    ranks = run_distributed(_evaluate_in_layouts, 4, layouts)
    for rank, results in enumerate(ranks):
        for found, their_texts, their_counts in results:
            if rank == 0:
                same(found, expected)
            assert their_texts == texts
            assert (their_counts.requests, their_counts.asked) == (counts.requests, counts.asked)
            assert counts.computed < their_counts.computed < 1.3 * counts.computed  # what both replicas need, twice


@pytest.mark.usefixtures("one_rank")
def test_requests_that_lose_their_beginnings_are_counted_and_reported_once(caplog):
    ours = our_lm(GPT2)
    requests = [(("a", "b"), [1] * length, [2, 3]) for length in (5, WINDOW - 1, WINDOW, WINDOW + 50)]
    with caplog.at_level(logging.INFO, "megagpt"):
        ours._loglikelihood_tokens(requests)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("2 of 4 requests are too long for the model's sequence_length of 128" in line for line in lines) == 1
    assert any(
        f"4 requests with {6 + 3 * WINDOW} tokens: {WINDOW + 1} computed, 66.9% reused" in line for line in lines
    )
    assert ours.cut_requests == 2
    context = "the fox " * 200
    ours.generate_until(instances("generate_until", (context, {"max_gen_toks": 5}), ("the", {"max_gen_toks": 5})))
    assert ours.cut_requests == 3


@pytest.mark.usefixtures("one_rank")
def test_texts_are_the_generators_and_settings_reach_it():
    from megagpt.model.generation import GenerationConfig

    ours = our_lm(LLAMA)
    sampled = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9, "seed": 4, "max_gen_toks": 12}
    greedy = {"until": "e", "max_gen_toks": 9, "repetition_penalty": 1.3}
    asked = [("the fox", sampled), ("a horse", greedy), ("the fox", sampled), ("", greedy)]
    texts = ours.generate_until(instances("generate_until", *asked))
    settings = GenerationConfig(max_new_tokens=12, temperature=1.3, top_k=20, top_p=0.9, seed=4)
    assert texts[::2] == [completion.text for completion in ours.generator.generate(["the fox"] * 2, settings)]
    assert texts[0] != texts[2]
    settings = GenerationConfig(max_new_tokens=9, temperature=0.0, stop=("e",), repetition_penalty=1.3)
    assert texts[1::2] == [completion.text for completion in ours.generator.generate(["a horse", ""], settings)]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.usefixtures("one_rank")
def test_beams_find_what_those_of_transformers_find(penalty):
    pytest.importorskip("megagpt.model.beam_search")
    ours = our_lm(GPT2)
    theirs = their_lm(ours.generator.modules, GPT2, batch_size=1)
    options = {"max_gen_toks": 10, "num_beams": 4, "length_penalty": penalty, "do_sample": False}
    asked = instances("generate_until", *((text, options) for text in ("the fox", "Question: what", "12 plus")))
    assert ours.generate_until(asked) == theirs.generate_until(asked)


@pytest.mark.usefixtures("one_rank")
def test_bad_settings_requests_and_models_are_refused_by_name():
    from megagpt.evaluate.in_context.language_model import MegaGPTLM

    ours = our_lm(GPT2)
    for options, message in (
        ({"num_return_sequences": 3, "x": 1}, "generation_kwargs has num_return_sequences, x, which"),
        ({"do_sample": True}, "do_sample but no temperature above 0"),
        ({"max_gen_toks": 128}, "max_gen_toks is 128, .*sequence_length of 128"),
        ({"num_beams": 4, "do_sample": True, "temperature": 1.0}, "num_beams=4 with do_sample"),
        ({"num_beams": 4, "repetition_penalty": 2.0}, "num_beams=4 with repetition_penalty"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 2.0}, "top_p is 2.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            ours.generate_until(instances("generate_until", ("the fox", options)))
    for continuation in ([], [1] * (WINDOW + 1)):
        with pytest.raises(
            DataError, match=rf"continuation of request 1 has {len(continuation)} tokens.* from 1 to the 128.*'words'"
        ):
            ours._loglikelihood_tokens([(None, [1], [1]), (("text", "words"), [1], continuation)])
    modules, config = build(GPT2)
    with pytest.raises(ConfigError, match="model's head is embedding"):
        MegaGPTLM(modules, replace(config, model=replace(config.model, head="embedding")), tokenizer())


@pytest.mark.usefixtures("one_rank")
def test_cached_answers_are_not_computed_again(tmp_path):
    ours, tasks = our_lm(GPT2), [small_tasks()[0], small_tasks()[9], small_tasks()[10]]
    first = evaluate(ours, tasks, use_cache=f"{tmp_path}/cache")
    ours.scorer.score = ours.generator.generate = None
    same(evaluate(ours, tasks, use_cache=f"{tmp_path}/cache"), first)


@pytest.mark.usefixtures("one_rank")
def test_its_tokens_are_the_tokenizers():
    ours = our_lm(GPT2)
    assert ours.tok_encode("the fox <|endoftext|>") == tokenizer().encode("the fox <|endoftext|>")
    assert ours.eot_token_id == ours.prefix_token_id == tokenizer().end_of_text_id < VOCAB
    assert (ours.rank, ours.world_size, ours.max_length) == (0, 1, WINDOW)
    assert ours.tokenizer_name == tokenizer().sha256


def test_without_lm_eval_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "megagpt.evaluate.in_context.language_model", raising=False)
    with pytest.raises(ConfigError, match=r'needs lm-eval: pip install "megagpt\[in-context\]"'):
        importlib.import_module("megagpt.evaluate.in_context.language_model")
