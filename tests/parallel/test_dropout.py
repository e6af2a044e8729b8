"""Dropout drops differently in replicas and pipeline stages, alike in a replica's tensor-parallel ranks, and alike in
every start."""

from itertools import combinations

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.batch import Batch

LAYOUTS = {
    "dp4": ParallelConfig(),
    "dp2_pp2": ParallelConfig(pipeline_parallel_size=2),
    "tp2_dp2": ParallelConfig(tensor_parallel_size=2),
    "tp2_pp2": ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=2),
}
MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    sequence_length=16,
    vocab_size=64,
    hidden_dropout=0.5,
    attention_dropout=0.5,
)


def _masks() -> dict[str, torch.Tensor]:
    """What this rank would drop of a residual stream that its tensor-parallel ranks share, and of its own heads."""
    from megatron.core import tensor_parallel

    ones = torch.ones(4096)
    shared = torch.nn.functional.dropout(ones, 0.5)
    with tensor_parallel.get_cuda_rng_tracker().fork():
        own = torch.nn.functional.dropout(ones, 0.5)
    return {"shared": shared, "own": own}


def _outputs(parallel: ParallelConfig) -> torch.Tensor:
    """A model's losses, with dropout, of tokens that are the same on every rank."""
    from megagpt.parallel.megatron import MegatronEngine
    from megagpt.train.objectives import LanguageModelObjective

    config = Config(model=MODEL, parallel=parallel, optim=OptimConfig(precision="fp32"))
    engine = MegatronEngine(config, LanguageModelObjective(), training=False)
    tokens = torch.arange(16)[None] % 7
    batch = Batch(tokens, tokens, torch.ones(1, 16), torch.arange(16)[None])
    return engine.outputs(iter([batch, batch]), 2, training=True)[0]


def on_a_rank(layouts: dict[str, ParallelConfig]) -> dict[str, dict]:
    """By layout: the place of this rank, its masks of two starts, and its losses."""
    import torch.distributed as dist

    from megagpt.parallel import launch
    from megagpt.parallel.dims import ParallelDims

    seen = {}
    for name, parallel in layouts.items():
        starts = []
        for _ in range(2):
            launch.initialize(parallel, seed=7)
            starts.append(_masks())
        dims = ParallelDims.of(parallel, dist.get_rank(), dist.get_world_size())
        place = {"tensor": dims.tensor_rank, "data": dims.data_rank, "pipeline": dims.pipeline_rank}
        seen[name] = {"place": place, "starts": starts, "outputs": _outputs(parallel)}
    launch.leave_groups()
    return seen


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict]]:
    return run_distributed(on_a_rank, 4, LAYOUTS)


def overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Share of elements that both masks treat alike: about half where they are independent."""
    return ((first > 0) == (second > 0)).double().mean().item()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_who_drops_the_same(ranks, layout):
    for first, second in combinations([rank[layout] for rank in ranks], 2):
        of_one_group = all(first["place"][axis] == second["place"][axis] for axis in ("data", "pipeline"))
        shared, own = (overlap(first["starts"][0][kind], second["starts"][0][kind]) for kind in ("shared", "own"))
        assert shared == 1 if of_one_group else 0.4 < shared < 0.6, (first["place"], second["place"])
        assert 0.4 < own < 0.6, (first["place"], second["place"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_start_drops_the_same(ranks, layout):
    for rank in ranks:
        first, again = rank[layout]["starts"]
        assert all(torch.equal(first[kind], again[kind]) for kind in first)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_model_makes_of_it(ranks, layout):
    """Replicas give other losses for the same tokens; the ranks of a replica the same."""
    for first, second in combinations([rank[layout] for rank in ranks], 2):
        if first["place"]["data"] == second["place"]["data"]:
            torch.testing.assert_close(first["outputs"], second["outputs"])
        else:
            assert not torch.allclose(first["outputs"], second["outputs"], atol=1e-3)
