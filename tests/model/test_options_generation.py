"""Options of the architecture where texts go through a model token by token: the same as through it at once."""

from dataclasses import replace

import pytest
from dist import run_distributed

from megagpt.config.schema import ModelConfig, ParallelConfig
from tests.model.test_continuations import expected_scores, scorer, some_requests
from tests.model.test_continuations import same as same_scores
from tests.model.test_generation import GREEDY, same_without_cache, settings
from tests.model.tiny import PROMPTS, VOCAB, generator, same
from tests.parallel.test_option_layouts import GEMMA, GPTJ, OLMO, ONE_GROUP

MODELS = {
    name: replace(model, vocab_size=VOCAB, sequence_length=40)
    for name, model in {"gemma": GEMMA, "gptj": GPTJ, "olmo": OLMO, "one_group": ONE_GROUP}.items()
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.usefixtures("one_rank")
def test_cached_tokens_are_the_uncached_ones(model: ModelConfig):
    ours = generator(model)
    same_without_cache(ours, ours.generate(PROMPTS, settings(**GREEDY)))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.usefixtures("one_rank")
def test_scores_in_a_token_tree_are_those_of_all_logits(model: ModelConfig, monkeypatch):
    from megagpt.model import token_tree

    monkeypatch.setattr(token_tree, "BRANCHES", 3)  # some keys and values are kept, others masked
    ours, requests = scorer(model), some_requests(0, 30)
    same_scores(ours.score(requests), expected_scores(ours.modules[0], requests))


LAYOUTS = [
    {"tensor_parallel_size": 2, "sequence_parallel": True},
    {"pipeline_parallel_size": 2, "virtual_pipeline_size": 2},
]


def _generate(layouts: list[dict]) -> list:
    from megatron.core import parallel_state

    from megagpt.parallel import launch

    results = []
    for layout in layouts:
        launch.initialize(ParallelConfig(**layout), seed=0)
        results += [generator(model, **layout).generate(PROMPTS, settings(**GREEDY)) for model in MODELS.values()]
        parallel_state.destroy_model_parallel()
    return results


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
def test_layouts_generate_as_one_rank():
    expected = [generator(model).generate(PROMPTS, settings(**GREEDY)) for model in MODELS.values()]
    for rank in run_distributed(_generate, 2, LAYOUTS):
        for completions, alone in zip(rank, expected * len(LAYOUTS), strict=True):
            same(completions, alone)
