"""Muon against torch's own, in every layout, from step to step and after a resume."""

import dataclasses

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import Config, ParallelConfig
from megagpt.parallel.muon import is_hidden_matrix, orthogonalize
from tests.parallel.test_megatron import BATCH, GPT3, MODERN, ON_FOUR, STEPS, _batch, config_of, train_all

LAYOUTS = [
    {},
    {"zero_stage": 0},
    {"overlap_param_gather": True},
    {"tensor_parallel_size": 2, "sequence_parallel": True},
    {"pipeline_parallel_size": 2},
    {"pipeline_parallel_size": 2, "virtual_pipeline_size": 2},
]
LR = 2e-3


def with_muon(config: Config) -> Config:
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, optimizer="muon"))


def build(config: Config):
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective

    launch.initialize(config.parallel, config.seed)
    return build_engine(config, LanguageModelObjective())


def step(engine, number: int) -> list[float]:
    """A step on this rank's share of a batch: its loss and gradient norm."""
    share = BATCH // engine.dims.data_size
    first = engine.dims.data_rank * share
    rows = (range(row, row + 1) for row in range(first, first + share))
    result = engine.train_step((_batch(number, r, engine.config.model) for r in rows), share, lr=LR)
    assert result.applied
    return [result.loss, result.grad_norm]


def cut(name: str, matrix: torch.Tensor) -> list[torch.Tensor]:
    """The projections of a weight of MODERN (heads of 8, 2 queries to a key, SwiGLU), by its documented rows."""
    if name.endswith("linear_qkv.weight"):
        rows = torch.arange(len(matrix)) % 32
        return [matrix[rows < 16], matrix[(rows >= 16) & (rows < 24)], matrix[rows >= 24]]
    return list(matrix.chunk(2)) if name.endswith("linear_fc1.weight") else [matrix]


def beside_torch(config: Config) -> list[tuple[str, float]]:
    """How far each parameter is from one that torch's Muon or AdamW has updated with the same gradients.

    It is the distance after `STEPS` in relation to the way that the parameter has gone.
    """
    from megagpt.parallel import launch

    torch.Tensor.bfloat16 = torch.Tensor.clone  # torch's Muon then computes in fp32, as ours does in this precision
    engine, optim = build(config), config.optim
    ours = dict(engine.modules[0].named_parameters())
    first = {name: parameter.detach().clone() for name, parameter in ours.items()}
    theirs = {
        name: [torch.nn.Parameter(part.clone()) for part in (cut(name, value) if is_hidden_matrix(name) else [value])]
        for name, value in first.items()
    }
    muon = [part for name, parts in theirs.items() if is_hidden_matrix(name) for part in parts]
    others = {name: parts[0] for name, parts in theirs.items() if not is_hidden_matrix(name)}
    betas = (optim.beta1, optim.beta2)
    optimizers = [
        torch.optim.Muon(muon, LR, optim.weight_decay, 0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in others.values() if p.dim() > 1], LR, betas, optim.eps, optim.weight_decay),
        torch.optim.AdamW([p for p in others.values() if p.dim() == 1], LR, betas, optim.eps, 0.0),
    ]
    for number in range(STEPS):
        _, norm = step(engine, number)
        assert norm > optim.clip_grad
        for name, parts in theirs.items():
            gradients = [ours[name].main_grad]  # which PyTorch's fused AdamW leaves clipped
            if is_hidden_matrix(name):
                gradients = cut(name, gradients[0] * (optim.clip_grad / norm))
            for part, value in zip(parts, gradients, strict=True):
                part.grad = value.clone()
        for optimizer in optimizers:
            optimizer.step()
    found = []
    for name, parts in theirs.items():
        got, before = ([value] if len(parts) == 1 else cut(name, value) for value in (ours[name], first[name]))
        for a, b, start in zip(got, parts, before, strict=True):
            found.append((name, float((a - b).norm() / (b - start).norm())))
    launch.leave_groups()
    return found


def test_equals_torchs_muon_on_every_projection_and_adam_elsewhere():
    (found,) = run_distributed(beside_torch, 1, with_muon(config_of(MODERN, {}, "fp32")))
    assert sum(is_hidden_matrix(name) for name, _ in found) == MODERN.num_layers * (3 + 1 + 2 + 1)
    assert all(distance < 1e-4 for _, distance in found), found


@pytest.mark.parametrize("shape", [(64, 64), (24, 96), (96, 24)])
def test_singular_values_become_about_one(shape):
    """Also those a hundred times below the largest; PyTorch's decomposition is the judge."""
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -2, min(shape))) @ v
    result = orthogonalize(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.3
    torch.testing.assert_close(u.T @ result @ v.T, torch.diag((u.T @ result @ v.T).diag()), atol=1e-4, rtol=0)


def layouts_beside_one_rank(world_size: int, chosen: list, precision: str, tolerance: float) -> None:
    configs = [with_muon(config_of(model, layout, precision)) for model, layout in chosen]
    alone = {repr(c.model): dataclasses.replace(c, parallel=ParallelConfig()) for c in configs}
    (curves,) = run_distributed(train_all, 1, list(alone.values()))
    expected = dict(zip(alone, curves, strict=True))
    for curves in run_distributed(train_all, world_size, configs):
        for config, curve in zip(configs, curves, strict=True):
            want = torch.tensor(expected[repr(config.model)])
            torch.testing.assert_close(
                torch.tensor(curve), want, rtol=tolerance, atol=0, msg=lambda m, c=config: f"{c.parallel}: {m}"
            )


def test_layouts_of_two_equal_one_rank():
    chosen = [(MODERN, layout) for layout in LAYOUTS] + [(GPT3, LAYOUTS[0]), (GPT3, LAYOUTS[3])]
    layouts_beside_one_rank(2, chosen, "fp32", 1e-4)


@pytest.mark.slow
def test_layouts_of_four_equal_one_rank():
    """More ranks than one layer has matrices, too: parts of a matrix are on up to four ranks."""
    chosen = [(MODERN if number % 2 else GPT3, layout) for number, layout in enumerate(ON_FOUR)]
    layouts_beside_one_rank(4, chosen, "fp32", 1e-4)


def on_and_on(config: Config) -> tuple[list, list, int, float]:
    """Steps of one engine, and of another that goes on from its middle; bytes of its optimizer's state, and planned."""
    from megagpt.parallel import launch
    from megagpt.plan.job import Job
    from megagpt.plan.memory import stage_memory

    whole, parts, curves = build(config), None, ([], [])
    for number in range(2 * STEPS):
        curves[0].append(step(whole, number))
        if number == STEPS - 1:
            parts = build_second(config)
            for source, target in zip(*(each.shards(for_saving=False) for each in (whole, parts)), strict=True):
                target.data.copy_(source.data)
            parts.post_load(STEPS)
        elif number >= STEPS:
            curves[1].append(step(parts, number))
    held = sum(
        shard.data.numel() * shard.data.itemsize
        for shard in whole.shards(for_saving=False)
        if shard.name.startswith("optimizer/")
    )
    dims = whole.dims
    job = Job(config, dims.tensor_size * dims.data_size * dims.pipeline_size)
    launch.leave_groups()
    return *curves, held, stage_memory(job, dims.pipeline_rank).optimizer


def build_second(config: Config):
    """Another engine in the groups that are there."""
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective

    return build_engine(dataclasses.replace(config, seed=config.seed + 1), LanguageModelObjective())


def all_on_and_on(configs: list[Config]) -> list[tuple[list, list, int, float]]:
    return [on_and_on(config) for config in configs]


def test_goes_on_bit_for_bit_from_its_shards_and_needs_the_planned_memory():
    configs = [with_muon(config_of(GPT3, layout, "bf16")) for layout in ({}, {"tensor_parallel_size": 2})]
    for ranks in zip(*run_distributed(all_on_and_on, 2, configs), strict=True):
        for whole, parts, _, _ in ranks:
            assert parts == whole[STEPS:]
        held, planned = (sum(rank[index] for rank in ranks) for index in (2, 3))
        assert held == pytest.approx(planned, rel=0.01)
