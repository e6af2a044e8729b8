"""The trace against the arithmetic, and against what a real run allocates."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.plan import traced
from tests.plan.small import EMBED, GPT3

MODERN = [
    "model=demo_modern",
    "model.hidden_size=512",
    "model.num_attention_heads=8",
    "model.num_query_groups=4",
    "model.sequence_length=512",
    "optim.global_batch_size=16",
    "optim.ramp_start=null",
    "optim.ramp_tokens=0",
]
GEMMA = [
    *MODERN,
    "model.norm_placement=both",
    "model.zero_centered_norm=true",
    "model.activation=geglu",
    "model.head_dim=128",
    "model.tie_embeddings=true",
]
OLMO = [*MODERN, "model.norm_placement=post", "model.qk_norm_scope=all_heads"]
ROTARY = [*GPT3, "model.position_embedding=rope", "model.rotary_fraction=0.25", "model.tie_embeddings=false"]
FALCON = [*ROTARY, "model.parallel_block=one_norm", "model.bias=false", "model.num_query_groups=1"]
TENSOR = ["parallel.tensor_parallel_size=2"]
SEQUENCE = [*TENSOR, "parallel.sequence_parallel=true"]
PIPELINE = ["parallel.pipeline_parallel_size=2"]


def another_process():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


# A trace makes a world of its own, which those of other tests would be in the way of, and so does a real run.
process = pytest.fixture(another_process, scope="module", name="process")
real = pytest.fixture(another_process, scope="module", name="real")


@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [
        (GPT3, 1),
        (
            [
                *GPT3,
                *TENSOR,
                "parallel.sequence_parallel=true",
                "parallel.pipeline_parallel_size=2",
                "model.head=scalar",
            ],
            4,
        ),
        ([*GPT3, "parallel.micro_batch_size=2"], 1),
        ([*GPT3, *TENSOR, "parallel.micro_batch_size=2"], 4),
        ([*GPT3, *SEQUENCE, *PIPELINE, "parallel.virtual_pipeline_size=2"], 8),
        ([*GPT3, *SEQUENCE, *PIPELINE, "parallel.recompute=full"], 4),
        ([*GPT3, "optim.precision=fp32"], 2),
        ([*GPT3, "kernels.fuse_output_projection=true"], 2),
        (MODERN, 1),
        (EMBED, 4),
        ([*EMBED, *SEQUENCE, *PIPELINE, "parallel.virtual_pipeline_size=2", "embed.hard_negatives=1"], 8),
        ([*EMBED, *PIPELINE, "parallel.recompute=full", "embed.learn_temperature=false"], 2),
        ([*MODERN, *SEQUENCE, *PIPELINE, "parallel.micro_batch_size=2", "model.qk_layernorm=false"], 8),
        ([*GEMMA, "model.qk_layernorm=false", "model.attention_softcap=50.0", "model.logit_softcap=30.0"], 1),
        ([*GEMMA, *SEQUENCE], 2),
        (OLMO, 1),
        ([*OLMO, *TENSOR], 2),
        ([*ROTARY, *PIPELINE, "model.parallel_block=two_norms", "model.activation=gelu_exact"], 2),
        ([*FALCON, *TENSOR, "model.output_bias=true"], 2),
        ([*GPT3, "model.activation=relu"], 1),
    ],
)
def test_arithmetic_agrees_with_the_trace(process, overrides, gpus):
    stages = process(traced.compare, overrides, gpus)
    assert stages
    for found in stages:
        assert found["parameters"] == found["planned parameters"]
        assert found["planned activations"] == pytest.approx(found["activations"], rel=0.1)


def test_175b_as_traced(process):
    layout = [*SEQUENCE, *PIPELINE, "parallel.tensor_parallel_size=8", "parallel.pipeline_parallel_size=16"]
    overrides = ["experiment=pretrain_175b", *layout, "parallel.virtual_pipeline_size=3", "optim.ramp_start=128"]
    stages = process(traced.compare, overrides, 1024)
    assert len(stages) == 3  # the first, the last, and one between
    for found in stages:
        assert found["parameters"] == found["planned parameters"]
        assert found["planned activations"] == pytest.approx(found["activations"], rel=0.02)


@pytest.mark.slow
def test_ppo_as_traced(process):
    copy = ["ppo.rollout_parallel.tensor_parallel_size=8", "ppo.rollout_parallel.pipeline_parallel_size=4"]
    half = ["model.num_layers=48", "ppo.scoring_model.num_layers=8"]  # one layer a chunk, where there are two
    found = process(traced.compare_models, ["experiment=ppo_175b", "data.corpora=[{path: text}]", *half, *copy], 128)
    assert {name: len(stages) for name, stages in found.items()} == {
        **{"policy": 3, "reference": 3, "rollout": 3},  # of a pipeline the first stage, the last, and one between
        **{"critic": 1, "reward": 1},
    }
    for name, stages in found.items():
        assert all(planned == built for planned, built in stages), name


@pytest.mark.parametrize(
    "overrides",
    [
        GPT3,
        MODERN,
        [*GPT3, "parallel.recompute=full"],
        [*GPT3, "optim.precision=fp32"],
        [*GPT3, "model.head=scalar"],
        EMBED,
    ],
)
def test_trace_agrees_with_what_is_allocated(process, real, overrides):
    assert process(traced.traced_peak, overrides) == pytest.approx(real(traced.allocated_peak, overrides), rel=0.1)
