"""The simulated pipeline against Megatron-Core's schedule and the closed ppo_math."""

import itertools

import pytest

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.plan.job import Job
from megagpt.plan.schedule import order, simulate

SHAPES = [(1, 1, 4), (2, 1, 4), (4, 1, 4), (4, 1, 16), (2, 2, 4), (4, 3, 4), (4, 2, 16)]


def pipeline(stages: int, virtual: int, micro_batches: int) -> Job:
    parallel = ParallelConfig(pipeline_parallel_size=stages, virtual_pipeline_size=virtual)
    optim = OptimConfig(global_batch_size=micro_batches)
    return Job(Config(model=ModelConfig(num_layers=24), parallel=parallel, optim=optim), stages)


def equal(job: Job, seconds: float) -> list[list[float]]:
    return [[seconds / job.virtual_size] * job.virtual_size for _ in range(job.pipeline_size)]


@pytest.mark.parametrize("shape", SHAPES)
def test_bubble_of_equal_stages(shape):
    """(p - 1) / (v m) of the ideal time (arXiv 2104.04473, sections 2.2.1 and 2.2.2)."""
    stages, virtual, micro_batches = shape
    job = pipeline(*shape)
    timeline = simulate(job, equal(job, 1.0), equal(job, 2.0), 0.0)
    ideal = 3.0 * micro_batches
    assert timeline.seconds == pytest.approx(ideal * (1 + (stages - 1) / (virtual * micro_batches)))
    assert timeline.bubble == pytest.approx(1 - ideal / timeline.seconds)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pass_once_after_its_input(shape):
    job = pipeline(*shape)
    passes = simulate(job, equal(job, 1.0), equal(job, 2.0), 0.1).passes
    assert len({(p.stage, p.chunk, p.micro_batch, p.forward) for p in passes}) == len(passes)
    assert len(passes) == 2 * job.pipeline_size * job.virtual_size * job.micro_batches
    ends = {(p.forward, p.micro_batch, p.chunk * job.pipeline_size + p.stage): p.end for p in passes}
    for p in passes:
        place = p.chunk * job.pipeline_size + p.stage
        source = (p.forward, p.micro_batch, place - 1 if p.forward else place + 1)
        assert p.start >= ends.get(source, 0.0)
    for stage in range(job.pipeline_size):
        own = sorted((p for p in passes if p.stage == stage), key=lambda p: p.start)
        assert all(before.end <= after.start for before, after in itertools.pairwise(own))


@pytest.mark.parametrize("shape", SHAPES)
def test_activations_in_flight(shape):
    """As many as are held at once when the passes are done in order."""
    job = pipeline(*shape)
    for stage in range(job.pipeline_size):
        held = largest = 0
        for forward, *_ in order(job, stage):
            held += 1 if forward else -1
            largest = max(largest, held)
        assert largest == job.in_flight(stage)


def test_order_is_megatron_cores():
    from megatron.core.pipeline_parallel.schedules import get_schedule_table

    for stages, virtual, micro_batches in SHAPES:
        if virtual == 1:
            continue
        job = pipeline(stages, virtual, micro_batches)
        table = get_schedule_table(micro_batches, virtual, stages)
        forward = [(m, c) for is_forward, m, c in order(job, 0) if is_forward]
        backward = [(m, virtual - 1 - c) for is_forward, m, c in order(job, 0) if not is_forward]
        assert forward == backward == table


def test_a_slow_stage_sets_the_pace():
    job = pipeline(4, 1, 16)
    forward, backward = equal(job, 1.0), equal(job, 2.0)
    forward[2][0], backward[2][0] = 2.0, 4.0
    assert simulate(job, forward, backward, 0.0).seconds >= 6.0 * 16
