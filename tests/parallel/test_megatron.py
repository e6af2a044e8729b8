"""Every layout gives the losses and gradient norms of one rank, from the same initial weights and batches."""

import dataclasses

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import Config, KernelsConfig, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.batch import Batch

STEPS, BATCH = 3, 8

MODERN = ModelConfig(
    num_layers=4,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    sequence_length=16,
    vocab_size=250,
    position_embedding="rope",
    normalization="rmsnorm",
    activation="swiglu",
    bias=False,
    tie_embeddings=False,
    qk_layernorm=True,
)
GPT3 = ModelConfig(
    num_layers=4,
    hidden_size=32,
    num_attention_heads=4,
    sequence_length=16,
    vocab_size=250,
    attention_pattern=("dense", "banded"),
    attention_window=4,
)

ON_TWO = [
    {"tensor_parallel_size": 2},
    {"tensor_parallel_size": 2, "sequence_parallel": True},
    {"pipeline_parallel_size": 2},
    {"pipeline_parallel_size": 2, "virtual_pipeline_size": 2},
    {},
    {"zero_stage": 0},
    {"tensor_parallel_size": 2, "sequence_parallel": True, "recompute": "full"},
    {"recompute": "selective", "overlap_grad_reduce": False},
    {"overlap_param_gather": True},
    {"tensor_parallel_size": 2, "fuse_output_projection": True},
    {"tensor_parallel_size": 2, "sequence_parallel": True, "fuse_output_projection": True},
]
ON_FOUR = [
    {"tensor_parallel_size": 4, "sequence_parallel": True},
    {"pipeline_parallel_size": 4},
    {"tensor_parallel_size": 2, "sequence_parallel": True, "pipeline_parallel_size": 2},
    {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "virtual_pipeline_size": 2, "recompute": "full"},
    {"tensor_parallel_size": 2, "zero_stage": 0, "overlap_grad_reduce": True},
    {"pipeline_parallel_size": 2, "virtual_pipeline_size": 2, "overlap_grad_reduce": True},
    {"pipeline_parallel_size": 2, "tensor_parallel_size": 2, "fuse_output_projection": True},
    {},
]


def config_of(model: ModelConfig, layout: dict, precision: str) -> Config:
    parallel = layout.copy()
    kernels = KernelsConfig(fuse_output_projection=parallel.pop("fuse_output_projection", False))
    return Config(
        model=model,
        kernels=kernels,
        parallel=ParallelConfig(**parallel),
        optim=OptimConfig(clip_grad=0.5, precision=precision),
    )


def _batch(step: int, rows: range, model: ModelConfig) -> Batch:
    generator = torch.Generator().manual_seed(step)
    shape = (BATCH, model.sequence_length)
    tokens = torch.randint(0, model.vocab_size, (BATCH, model.sequence_length + 1), generator=generator)
    mask = (torch.rand(shape, generator=generator) < 0.7).float()  # unequal counts in every micro-batch
    positions = torch.arange(model.sequence_length).expand(shape)
    pick = slice(rows.start, rows.stop)
    return Batch(tokens[pick, :-1], tokens[pick, 1:].contiguous(), mask[pick], positions[pick], None)


def _train(config: Config) -> list[tuple[float, float]]:
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective

    launch.initialize(config.parallel, config.seed)
    engine = build_engine(config, LanguageModelObjective())
    dims, size = engine.dims, config.parallel.micro_batch_size
    curve = []
    for step in range(STEPS):
        count = BATCH // (size * dims.data_size)
        rows = [range(start, start + size) for start in range(dims.data_rank * size, BATCH, size * dims.data_size)]
        result = engine.train_step((_batch(step, r, config.model) for r in rows), count, lr=2e-3)
        assert result.applied
        curve.append((result.loss, result.grad_norm))
    held_out = (_batch(99, r, config.model) for r in rows)
    curve.append((engine.evaluate(held_out, count).loss, 0.0))
    launch.leave_groups()
    return curve


def train_all(configs: list[Config]) -> list[list[tuple[float, float]]]:
    return [_train(config) for config in configs]


def _wishes(config: Config) -> list[bool]:
    """Whether steps say that somebody wishes to stop: when nobody does, and when the last rank does."""
    import torch.distributed as dist

    from megagpt.parallel import launch
    from megagpt.parallel.megatron import MegatronEngine
    from megagpt.train.objectives import LanguageModelObjective

    launch.initialize(config.parallel, config.seed)
    engine, said = MegatronEngine(config, LanguageModelObjective()), []
    for wish in (False, dist.get_rank() == dist.get_world_size() - 1):
        engine.wishes_stop = lambda wish=wish: wish
        said.append(engine.train_step(iter([_batch(0, range(1), config.model)] * 2), 2, lr=1e-3).stop)
    launch.leave_groups()
    return said


@pytest.mark.parametrize("layout", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}])
def test_a_wish_to_stop_comes_with_the_result_of_a_step(layout):
    assert run_distributed(_wishes, 2, config_of(GPT3, layout, "fp32")) == [[False, True]] * 2


def _updated(config: Config) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """What this rank would save and compute with after a step: its shards of the model, and its modules' parameters."""
    from megagpt.parallel import launch
    from megagpt.parallel.megatron import MegatronEngine
    from megagpt.train.objectives import LanguageModelObjective

    launch.initialize(config.parallel, config.seed)
    found = []
    for first in ("shards", "modules"):
        engine = MegatronEngine(config, LanguageModelObjective())
        row = range(engine.dims.data_rank, engine.dims.data_rank + 1)
        assert engine.train_step(iter([_batch(0, row, config.model)]), 1, lr=2e-3).applied
        if first == "shards":
            shards = engine.shards(for_saving=False)
            found.append({shard.label: shard.data.clone() for shard in shards if shard.name.startswith("model/")})
        else:
            found.append([parameter.detach().clone() for parameter in engine.modules[0].parameters()])
    launch.leave_groups()
    return tuple(found)


def test_what_is_saved_and_asked_has_the_updates_of_all_replicas():
    """Each replica updates its share, and gathers the others' in its next forward pass: nobody may read before that."""
    config = config_of(GPT3, {"overlap_param_gather": True}, "fp32")
    first, second = run_distributed(_updated, 2, config)
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][label], second[0][label]) for label in first[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize(("device", "batched"), [("cuda", True), ("cpu", False)])
def test_pipeline_messages_never_synchronise_the_device(device, batched):
    """And they overlap where the schedule is interleaved, which Megatron-Core cannot do with batched ones."""
    from megatron.core import ModelParallelConfig

    from megagpt.parallel.megatron import set_pipeline_messages

    plain, interleaved = ModelParallelConfig(), ModelParallelConfig()
    set_pipeline_messages(plain, torch.device(device), virtual_size=1)
    set_pipeline_messages(interleaved, torch.device(device), virtual_size=2)
    assert (plain.batch_p2p_comm, plain.overlap_p2p_comm) == (batched, False)
    assert (interleaved.batch_p2p_comm, interleaved.overlap_p2p_comm) == (False, True)
    assert not plain.batch_p2p_sync and not interleaved.batch_p2p_sync


@pytest.mark.parametrize(
    ("world_size", "layouts", "precision", "tolerance"),
    [
        (
            2,
            [(GPT3, layout) for layout in ON_TWO] + [(MODERN, layout) for layout in ON_TWO[:4] + ON_TWO[-1:]],
            "fp32",
            1e-4,
        ),
        pytest.param(
            4,
            [(GPT3, layout) for layout in ON_FOUR[::2]] + [(MODERN, layout) for layout in ON_FOUR[1::2]],
            "fp32",
            1e-4,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            2, [(MODERN, layout) for layout in ON_TWO[1:6] + ON_TWO[-1:]], "bf16", 2e-2, marks=pytest.mark.slow
        ),
    ],
)
def test_layouts_equal_one_rank(world_size, layouts, precision, tolerance):
    configs = [config_of(model, layout, precision) for model, layout in layouts]
    alone = [
        dataclasses.replace(
            config, parallel=ParallelConfig(zero_stage=config.parallel.zero_stage), kernels=KernelsConfig()
        )
        for config in configs
    ]
    unique = {repr(config): config for config in alone}
    (expected,) = run_distributed(train_all, 1, list(unique.values()))
    expected = dict(zip(unique, expected, strict=True))
    for curves in run_distributed(train_all, world_size, configs):  # of every rank
        for config, single, curve in zip(configs, alone, curves, strict=True):
            got, want = torch.tensor(curve), torch.tensor(expected[repr(single)])
            torch.testing.assert_close(got, want, rtol=tolerance, atol=0, msg=lambda m, c=config: f"{c.parallel}: {m}")
