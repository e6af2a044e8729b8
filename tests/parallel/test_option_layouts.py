"""Every option of the architecture in every layout and engine: losses, gradient norms and new weights of one rank."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from dist import run_distributed

from megagpt.config.architecture import ModelConfig, RopeScalingConfig
from megagpt.config.schema import Config, KernelsConfig, ParallelConfig
from tests.parallel.test_megatron import BATCH, GPT3, MODERN, _batch, config_of

STEPS = 2
GEMMA = replace(
    MODERN,
    num_query_groups=2,
    head_dim=16,
    activation="geglu",
    norm_placement="both",
    zero_centered_norm=True,
    embedding_scale=32**0.5,
    attention_scale=0.5,
    attention_softcap=0.5,
    logit_softcap=0.7,
    rope_local_base=100.0,
    rope_scaling=RopeScalingConfig("yarn", factor=4.0, original_length=8, beta_fast=8.0),
    attention_pattern=("banded", "dense"),
    attention_window=7,
    tie_embeddings=True,
)
OLMO = replace(MODERN, norm_placement="post", qk_norm_scope="all_heads", qkv_bias=True)
OLMO_LAYERNORM = replace(OLMO, normalization="layernorm", num_query_groups=4, activation="relu")
ONE_GROUP = replace(
    GPT3,
    num_query_groups=1,
    qk_layernorm=True,
    attention_output_bias=False,
    parallel_block="one_norm",
    output_bias=True,
)
GPTJ = replace(
    GPT3,
    position_embedding="rope",
    rotary_fraction=0.5,
    parallel_block="two_norms",
    activation="squared_relu",
    tie_embeddings=False,
    output_bias=True,
)
TENSOR, PIPELINE = {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}
SEQUENCE = TENSOR | {"sequence_parallel": True}
ZERO3 = {"engine": "deepspeed", "zero_stage": 3}
EVERY = GEMMA, OLMO, OLMO_LAYERNORM, ONE_GROUP, GPTJ
ON_TWO = [
    (GEMMA, SEQUENCE | {"recompute": "full"}),
    (OLMO, SEQUENCE | {"recompute": "selective"}),
    (OLMO_LAYERNORM, TENSOR),
    (ONE_GROUP, SEQUENCE),
    (GPTJ, TENSOR),
    (GEMMA, PIPELINE | {"virtual_pipeline_size": 2}),
    (GPTJ, PIPELINE),
]
MORE_ON_TWO = [(model, layout) for model in EVERY for layout in (TENSOR, SEQUENCE, PIPELINE)]
ON_DEEPSPEED = [
    (GEMMA, ZERO3),
    (OLMO, ZERO3 | SEQUENCE),
    (ONE_GROUP, ZERO3 | TENSOR),
    (GPTJ, {"engine": "deepspeed", "zero_stage": 1}),
]
ON_FOUR = [
    (ONE_GROUP, {"tensor_parallel_size": 4, "sequence_parallel": True}),
    (GEMMA, {"tensor_parallel_size": 4}),
    (OLMO, SEQUENCE | PIPELINE),
    (GPTJ, TENSOR | PIPELINE | {"virtual_pipeline_size": 2}),
    (ONE_GROUP, TENSOR),
]


def settings(model: ModelConfig, layout: dict, optimizer: str = "adam") -> Config:
    config = config_of(model, layout, "fp32")
    # Gradients that are zero but for rounding must not become whole updates.
    return replace(config, optim=replace(config.optim, optimizer=optimizer, eps=1e-3))


def train(config: Config) -> tuple[list[tuple[float, float]], list]:
    """Losses and gradient norms, and this rank's shards of the weights after the steps."""
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective

    launch.initialize(config.parallel, config.seed)
    engine = build_engine(config, LanguageModelObjective())
    dims, curve = engine.dims, []
    rows = range(dims.data_rank, BATCH, dims.data_size)
    for step in range(STEPS):
        batches = (_batch(step, range(row, row + 1), config.model) for row in rows)
        result = engine.train_step(batches, len(rows), lr=2e-2)
        curve.append((result.loss, result.grad_norm))
    shards = [shard for shard in engine.shards(for_saving=True) if shard.name.startswith("model/")]
    shards = [dataclasses.replace(shard, data=shard.data.detach().clone()) for shard in shards]
    launch.leave_groups()
    return curve, shards


def train_all(configs: list[Config]) -> list[tuple]:
    return [train(config) for config in configs]


def assembled(shards: list) -> dict[str, torch.Tensor]:
    """Whole tensors of the shards of all ranks, each element of which one of them holds."""
    wholes: dict[str, torch.Tensor] = {}
    for shard in shards:
        whole = wholes.setdefault(shard.name, torch.full(shard.global_shape, torch.nan))
        box = whole[tuple(slice(o, o + n) for o, n in zip(shard.offset, shard.shape, strict=True))]
        flat, (start, stop) = box.flatten(), shard.range
        assert flat[start:stop].isnan().all(), shard.label
        flat[start:stop] = shard.data.flatten()
        box.copy_(flat.view(box.shape))
    return wholes


def compare(world_size: int, configs: list[Config]) -> None:
    alone = [replace(config, parallel=ParallelConfig(), kernels=KernelsConfig()) for config in configs]
    unique = {repr(config): config for config in alone}
    (expected,) = run_distributed(train_all, 1, list(unique.values()))
    expected = dict(zip(unique, expected, strict=True))
    ranks = run_distributed(train_all, world_size, configs)
    for number, (config, single) in enumerate(zip(configs, alone, strict=True)):
        at = f"{config.parallel} {config.model}"
        curve, shards = expected[repr(single)]
        for rank in ranks:
            torch.testing.assert_close(torch.tensor(rank[number][0]), torch.tensor(curve), rtol=1e-4, atol=0, msg=at)
        found, wanted = assembled([shard for rank in ranks for shard in rank[number][1]]), assembled(shards)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4, msg=f"{name} {at}")


@pytest.mark.slow
def test_layouts_of_two_equal_one_rank():
    compare(2, [settings(*case) for case in ON_TWO])


@pytest.mark.slow
@pytest.mark.thorough
def test_more_layouts_of_two_equal_one_rank():
    compare(2, [settings(*case) for case in MORE_ON_TWO])


@pytest.mark.slow
@pytest.mark.thorough
def test_layouts_of_four_equal_one_rank():
    compare(4, [settings(*case) for case in ON_FOUR])


@pytest.mark.slow
def test_deepspeed_equals_one_rank():
    pytest.importorskip("deepspeed")
    compare(2, [settings(*case) for case in ON_DEEPSPEED])


@pytest.mark.slow
def test_muon_equals_one_rank():
    cases = [(GEMMA, SEQUENCE), (ONE_GROUP, TENSOR)]
    compare(2, [settings(*case, optimizer="muon") for case in cases])
