"""The scalar head: its values and gradients in every layout, what of it is in memory, and what starts from what."""

import dataclasses

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.batch import Batch

STEPS, BATCH, LENGTH = 3, 4, 8
TOKENS = ModelConfig(num_layers=4, hidden_size=32, num_attention_heads=4, sequence_length=LENGTH, vocab_size=250)
SCALAR = dataclasses.replace(TOKENS, head="scalar")
LAYOUTS = {
    "zero_0": ParallelConfig(zero_stage=0),
    "zero_1": ParallelConfig(),
    "tensor": ParallelConfig(tensor_parallel_size=2),
    "sequence": ParallelConfig(tensor_parallel_size=2, sequence_parallel=True),
    "pipeline": ParallelConfig(pipeline_parallel_size=2),
    "interleaved": ParallelConfig(pipeline_parallel_size=2, virtual_pipeline_size=2),
    "deepspeed_1": ParallelConfig(engine="deepspeed", tensor_parallel_size=2),
    "deepspeed_2": ParallelConfig(engine="deepspeed", zero_stage=2, tensor_parallel_size=2, sequence_parallel=True),
    "deepspeed_3": ParallelConfig(engine="deepspeed", zero_stage=3),
}


class Regression:
    """Squared distance of every token's value from its label."""

    metric_names = ()

    def forward(self, model, batch):
        return model(batch.tokens, batch.position_ids, None)

    def loss(self, output, batch):
        return (output - batch.labels.float() / 250).square().sum(), torch.tensor(output.numel()), ()


def batches(step: int, rows: range):
    for row in rows:
        tokens = torch.randint(0, 250, (1, LENGTH + 1), generator=torch.Generator().manual_seed(step * BATCH + row))
        positions = torch.arange(LENGTH)[None]
        yield Batch(tokens[:, :-1], tokens[:, 1:].contiguous(), torch.ones(1, LENGTH), positions)


def config_of(parallel: ParallelConfig, model: ModelConfig = SCALAR) -> Config:
    return Config(model=model, parallel=parallel, optim=OptimConfig(precision="fp32", global_batch_size=BATCH))


def train(config: Config) -> dict:
    """Losses and gradient norms of a few steps, the values before and after them, names of parameters."""
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine

    launch.initialize(config.parallel, config.seed)
    engine = build_engine(config, Regression())
    shards = engine.shards(for_saving=False)
    names = {shard.name: shard.global_shape for shard in shards if shard.name.startswith("model/")}
    rows = range(engine.dims.data_rank, BATCH, engine.dims.data_size)
    seen = {"names": names, "before": torch.cat(engine.outputs(batches(9, range(2)), 2))}
    seen["curve"] = []
    for step in range(STEPS):
        result = engine.train_step(batches(step, rows), len(rows), lr=1e-3)
        seen["curve"].append((result.loss, result.grad_norm))
    seen["after"] = torch.cat(engine.outputs(batches(9, range(2)), 2))
    launch.leave_groups()
    return seen


def train_all() -> dict[str, dict]:
    return {name: train(config_of(parallel)) for name, parallel in LAYOUTS.items()}


@pytest.fixture(scope="module")
def expected() -> dict:
    (seen,) = run_distributed(train, 1, config_of(ParallelConfig()))
    return seen


@pytest.fixture(scope="module")
def two_ranks() -> list[dict]:
    return run_distributed(train_all, 2)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_one_rank(layout: str, expected: dict, two_ranks: list[dict]):
    for rank in two_ranks:
        seen = rank[layout]
        for name in ("before", "after"):
            assert seen[name].dtype == torch.float32
            assert seen[name].shape == (2, LENGTH)
            torch.testing.assert_close(seen[name], expected[name], atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(seen["curve"]), torch.tensor(expected["curve"]), atol=1e-4, rtol=1e-4)
    assert (expected["after"] - expected["before"]).abs().min() > 0


def test_there_is_no_output_projection(expected: dict, two_ranks: list[dict]):
    names = expected["names"]
    assert names["model/scalar_head.weight"] == (1, 32)
    assert names["model/scalar_head.bias"] == (1,)
    assert not any("output_layer" in name for name in names)
    first, last = (rank["pipeline"]["names"] for rank in two_ranks)
    assert "model/embedding.word_embeddings.weight" in first
    assert "model/scalar_head.weight" not in first
    assert "model/embedding.word_embeddings.weight" not in last
    assert "model/scalar_head.weight" in last
