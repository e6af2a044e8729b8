"""DeepSpeed's ZeRO gives one rank's losses and gradient norms, and divides what it says."""

import dataclasses
import gc
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from dist import has_libaio, run_distributed

from megagpt.config.load import load
from megagpt.config.schema import Config
from megagpt.errors import DistributedError
from megagpt.evaluate.zero_memory import measure_stages, theory
from megagpt.parallel.engine import Engine
from megagpt.parallel.zero import refuse_abandoned_builds
from tests.parallel.test_megatron import GPT3, MODERN, _batch, config_of, train_all

needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")
ZERO = [{"engine": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)]
TENSOR = {"tensor_parallel_size": 2}
SEQUENCE = TENSOR | {"sequence_parallel": True}
OFFLOAD = {"offload_optimizer": "cpu"}
LAYOUTS = [
    *ZERO,
    *(zero | SEQUENCE for zero in ZERO),
    ZERO[0] | TENSOR | OFFLOAD,
    ZERO[1] | OFFLOAD | {"recompute": "full"},
    ZERO[2] | TENSOR | OFFLOAD | {"offload_parameters": "cpu", "recompute": "selective"},
    ZERO[2] | TENSOR | {"fuse_output_projection": True},
]


@needs_deepspeed
@pytest.mark.parametrize(
    ("model", "precision", "layouts", "tolerance"),
    [
        pytest.param(GPT3, "fp32", LAYOUTS, 1e-4, id="fp32", marks=pytest.mark.slow),
        pytest.param(MODERN, "bf16", LAYOUTS[:6], 1e-2, id="bf16", marks=[pytest.mark.slow, pytest.mark.thorough]),
    ],
)
def test_equals_megatron_on_one_rank(model, precision, layouts, tolerance):
    (expected,) = run_distributed(train_all, 1, [config_of(model, {}, precision)])
    for curves in run_distributed(train_all, 2, [config_of(model, layout, precision) for layout in layouts]):
        for layout, curve in zip(layouts, curves, strict=True):
            got, want = torch.tensor(curve), torch.tensor(expected[0])
            torch.testing.assert_close(got, want, rtol=tolerance, atol=0, msg=lambda m, at=layout: f"{at}: {m}")


@pytest.mark.slow
@pytest.mark.thorough
@needs_deepspeed
@pytest.mark.skipif(not has_libaio(), reason="libaio's headers or a C++ compiler are not installed")
@pytest.mark.timeout(1200)  # the first to run compiles DeepSpeed's reader
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_offload_to_disk_changes_nothing(precision, tmp_path):
    """Optimizer state, then parameters too, swapped in and out; a checkpoint of either fits the other.

    Held against offload to the CPU's memory, which sums the gradient norm in the same order: in bf16 another last bit
    of the norm moves parameters that are about to be rounded.
    """
    model = dataclasses.replace(GPT3, hidden_size=128)  # DeepSpeed swaps from 1 MiB upward
    disk = {"offload_optimizer": "nvme", "offload_path": str(tmp_path)}
    all_on_disk = disk | {"offload_parameters": "nvme"}
    memory, optimizer, all_of_it = (
        config_of(model, ZERO[2] | where, precision) for where in (OFFLOAD, disk, all_on_disk)
    )
    for found in run_distributed(train_and_change, 2, [memory, optimizer, all_of_it, optimizer, memory], timeout=900):
        (expected, _), *others = zip(found["curves"], found["held"], strict=True)
        for curve, _ in others:
            torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-6, atol=0)
        assert found["held"][1] < 0.2 * found["held"][0]  # bytes of optimizer state in memory
        assert found["swapped"] > 0
    assert not list(tmp_path.rglob("*.swp"))


def train_and_change(configs: list[Config]) -> dict[str, list]:
    """The curve of each engine; each starts from the first's state after one step. Bytes that its state takes."""
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective

    found = {"curves": [], "held": [], "swapped": 0}
    state: dict[str, torch.Tensor] = {}
    for config in configs:
        launch.initialize(config.parallel, config.seed)
        engine = build_engine(config, LanguageModelObjective())
        if state:
            for shard in engine.shards(for_saving=False):
                shard.data.copy_(state[shard.label])
            engine.post_load(1)
        else:
            _step(engine, config, 0)
            state = {shard.label: shard.data.clone() for shard in engine.shards(for_saving=False)}
        found["curves"].append([_step(engine, config, step) for step in (1, 2, 3)])
        found["held"].append(sum(t.nbytes for s in engine.zero.optimizer.state.values() for t in s.values()))
        if config.parallel.offload_path:
            own = Path(config.parallel.offload_path).glob(f"*/rank{engine.dims.rank}/**/*.swp")
            found["swapped"] += sum(file.stat().st_size for file in own)
        del engine
        gc.collect()
        launch.leave_groups()
    return found


def _step(engine: Engine, config: Config, step: int) -> tuple[float, float]:
    rows = [range(row, row + 1) for row in range(engine.dims.data_rank * 4, engine.dims.data_rank * 4 + 4)]
    result = engine.train_step((_batch(step, r, config.model) for r in rows), len(rows), lr=2e-3)
    return result.loss, result.grad_norm


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.thorough)])
def test_every_stage_divides_what_it_should(ranks):
    small = ["model=tiny", "model.num_layers=8", "model.hidden_size=128", "model.vocab_size=512", "data.corpora=[]"]
    config = load([*small, "model.sequence_length=32", "optim.precision=bf16"])
    for held in run_distributed(measure_stages, ranks, config, [1, 2, 3]):
        for stage, measured in zip((1, 2, 3), held, strict=True):
            expected = theory(stage, ranks, bf16=True)
            assert measured.parameters == pytest.approx(expected.parameters, rel=0.01)
            assert measured.optimizer == pytest.approx(expected.optimizer, rel=0.01)
            bucket = 0.52  # an eighth of the gradients
            assert expected.gradients * 0.99 <= measured.gradients <= expected.gradients + bucket


def test_the_lock_of_a_build_that_was_killed_is_named_and_not_waited_for(tmp_path):
    refuse_abandoned_builds(tmp_path / "absent")
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    refuse_abandoned_builds(tmp_path)  # somebody may be building
    os.utime(lock, (0, 0))
    with pytest.raises(DistributedError, match=f"{lock} is .* minutes old: .* Remove the file"):
        refuse_abandoned_builds(tmp_path)
