"""What a process of its own finds: traces of small models, and the memory that real runs of them allocate."""

import itertools

import torch
from torch.profiler import ProfilerActivity, profile

from megagpt.config.load import load
from megagpt.parallel import launch
from megagpt.plan.job import Job
from megagpt.plan.memory import saved_logits, stage_memory
from megagpt.plan.parameters import stage_parameters
from megagpt.plan.ppo import models_of


def compare(overrides: list[str], gpus: int) -> list[dict[str, float]]:
    """Arithmetic and trace of the stages that differ."""
    from megagpt.plan.trace import trace

    job = Job(load(overrides), gpus)
    found = []
    for stage in trace(job):
        planned = stage_memory(job, stage.stage)
        logits = saved_logits(job) if stage.stage == job.pipeline_size - 1 else 0.0
        found.append(
            {
                "parameters": stage.parameters,
                "planned parameters": stage_parameters(job, stage.stage),
                "activations": stage.activation_bytes(job.in_flight(stage.stage)),
                "planned activations": planned.activations + logits,
            }
        )
    return found


def compare_models(overrides: list[str], gpus: int) -> dict[str, list[tuple[int, int]]]:
    """Parameters of PPO's models on the stages that differ, as planned and as traced."""
    from megagpt.plan.trace import trace

    models = models_of(load(overrides), gpus)
    return {
        name: [(stage_parameters(job, stage.stage), stage.parameters) for stage in trace(job)]
        for name, job in models.items()
    }


def traced_peak(overrides: list[str]) -> float:
    """Peak of a forward and backward pass on one rank in bytes, weights apart, as traced."""
    from megagpt.plan.trace import trace

    (stage,) = trace(Job(load(overrides), 1), on_gpu=False)
    return stage.chunks[0].peak_bytes


def allocated_peak(overrides: list[str]) -> float:
    """The same as the system's allocator sees it when a rank really computes; in a process that traces nothing."""
    from megagpt.model.gpt import GPT
    from megagpt.plan.trace import example_inputs

    job = Job(load(overrides), 1)
    launch.initialize(job.config.parallel, job.config.seed)
    model = GPT(job.config)
    forward = example_inputs(model, job.config)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = forward()
        output.backward(torch.ones_like(output))
    launch.shutdown()
    return _peak(profiler)


def allocated_by_comparison(pairs: int, kinds: int, width: int, dimensions: tuple[int, ...]) -> float:
    """Peak of comparing so many pairs on one rank in bytes, the given vectors apart."""
    from megagpt.config.embedding import EmbedConfig
    from megagpt.train.contrastive import contrastive_gradients

    texts = torch.randn(kinds, pairs, width)
    ids = torch.arange(kinds * pairs).view(kinds, pairs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        contrastive_gradients(texts, ids, EmbedConfig(dimensions=dimensions), None)
    return _peak(profiler)


def _peak(profiler: profile) -> float:
    """Most bytes allocated at a time."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))
