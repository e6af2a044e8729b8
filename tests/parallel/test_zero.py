"""DeepSpeed's ZeRO gives one rank's losses and gradient norms, and divides what it says."""

import importlib.util

import pytest
import torch
from dist import run_distributed

from megagpt.config.load import load
from megagpt.evaluate.zero_memory import measure_stages, theory
from tests.parallel.test_megatron import GPT3, MODERN, config_of, train_all

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
    [(GPT3, "fp32", LAYOUTS, 1e-4), (MODERN, "bf16", LAYOUTS[:6], 1e-2)],
    ids=["fp32", "bf16"],
)
def test_equals_megatron_on_one_rank(model, precision, layouts, tolerance):
    (expected,) = run_distributed(train_all, 1, [config_of(model, {}, precision)])
    for curves in run_distributed(train_all, 2, [config_of(model, layout, precision) for layout in layouts]):
        for layout, curve in zip(layouts, curves, strict=True):
            got, want = torch.tensor(curve), torch.tensor(expected[0])
            torch.testing.assert_close(got, want, rtol=tolerance, atol=0, msg=lambda m, at=layout: f"{at}: {m}")


@needs_deepspeed
@pytest.mark.parametrize("ranks", [1, 2, 4])
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
