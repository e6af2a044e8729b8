"""Searches layouts that fit: the fastest ones, and small changes to a layout that does not fit."""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from megagpt.config.rules import check
from megagpt.config.schema import Config
from megagpt.errors import ConfigError
from megagpt.plan.assumptions import doubts
from megagpt.plan.devices import Device
from megagpt.plan.estimate import Estimate
from megagpt.plan.job import Job
from megagpt.plan.run import estimate, fits

MICRO_BATCHES = (1, 2, 4, 8, 16)
LARGEST_PAIRS = 64
"""Largest micro-batch in stage embed, whose texts are short."""
LARGEST_VIRTUAL = 12
SIMULATED = 3
"""For each returned layout, this many of the best layouts by formula are simulated."""


@dataclass(frozen=True)
class Layout:
    """A plan, and the overrides that change the given configuration to it."""

    overrides: tuple[str, ...]
    plan: Estimate


def search(config: Config, gpus: int, device: Device, count: int = 10) -> list[Layout]:
    """The `count` fastest layouts of `config` on `gpus` that fit, fastest first; empty when none fits.

    Layouts with doubtful times (`doubts`) come last.
    """
    found = []
    for changes in _layouts(config, gpus, device):
        job = changed(config, gpus, changes)
        if job is not None and fits(job, device):
            found.append(estimate(job, device, simulated=False))
    found.sort(key=_rank)
    layouts = [Layout(_overrides(config, one.job), estimate(one.job, device)) for one in found[: SIMULATED * count]]
    return sorted(layouts, key=lambda layout: _rank(layout.plan))[:count]


def nearest(config: Config, gpus: int, device: Device) -> tuple[Layout | None, list[Layout]]:
    """When no layout fits: the layout that needs the least memory, and changes such as offloading that make it fit.

    None if no layout passes the configuration's rules. All overrides are relative to `config`.
    """
    jobs = [changed(config, gpus, changes) for changes in _layouts(config, gpus, device)]
    kept = [job for job in jobs if job is not None and job.config.parallel.recompute == "full"]
    smallest = min((job.config.parallel.micro_batch_size for job in kept), default=0)
    plans = [estimate(job, device, False) for job in kept if job.config.parallel.micro_batch_size == smallest]
    if not plans:
        return None, []
    least = min(plans, key=lambda plan: plan.peak_bytes)
    fitting = [Layout(_overrides(config, one.plan.job), one.plan) for one in remedies(least.job, device)]
    return Layout(_overrides(config, least.job), least), fitting


def remedies(job: Job, device: Device, count: int = 3) -> list[Layout]:
    """Up to `count` layouts that fit and differ from the job by one or two changes, in the order of `search`."""
    parallel, config = job.config.parallel, job.config
    single: list[dict[str, Any]] = [
        {"parallel.recompute": "full"},
        {"parallel.micro_batch_size": 1},
        {"parallel.micro_batch_size": max(1, parallel.micro_batch_size // 2)},
        {"parallel.sequence_parallel": True},
        {"parallel.virtual_pipeline_size": 1},
        {"kernels.fuse_output_projection": True},
        {"parallel.zero_stage": 1},
        {"parallel.engine": "deepspeed", "parallel.zero_stage": 3},
        {"parallel.engine": "deepspeed", "parallel.zero_stage": 2, "parallel.offload_optimizer": "cpu"},
    ]
    for factor in (2, 4, 8, 16):
        single.append({"parallel.pipeline_parallel_size": factor * job.pipeline_size})
        if factor * job.tensor_size <= device.gpus_per_node:
            single.append(
                {"parallel.tensor_parallel_size": factor * job.tensor_size, "parallel.sequence_parallel": True}
            )
    found: dict[frozenset[str], Layout] = {}
    for together in (1, 2):
        for parts in itertools.combinations(single, together):
            changes = {key: value for part in parts for key, value in part.items()}
            other = changed(config, job.gpus, changes)
            if other is None or not fits(other, device):
                continue
            other = dataclasses.replace(job, config=other.config)  # keep the job's assumptions about kernels
            overrides = _overrides(config, other)
            if not any(smaller <= frozenset(overrides) for smaller in found):  # a subset of the changes fits already
                found[frozenset(overrides)] = Layout(overrides, estimate(other, device, simulated=False))
    return sorted(found.values(), key=lambda layout: _rank(layout.plan))[:count]


def _rank(plan: Estimate) -> tuple[bool, float]:
    """Sort key of a plan: its time, with doubtful times last."""
    return bool(doubts(plan)), plan.step_seconds


def changed(config: Config, gpus: int, changes: dict[str, Any]) -> Job | None:
    """`config` with `changes` ({"group.field": value}) as a job; None when that breaks a rule.

    `optim.ramp_start` is rounded up to the next number of sequences that the layout can divide.
    """
    groups: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        group, _, field = key.partition(".")
        groups.setdefault(group, {})[field] = value
    for group, values in groups.items():
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **values)})
    parallel, optim = config.parallel, config.optim
    replica = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    if optim.ramp_start is not None and gpus % replica == 0:
        multiple = gpus // replica * parallel.micro_batch_size
        multiple *= parallel.pipeline_parallel_size if parallel.virtual_pipeline_size > 1 else 1
        start = -(-optim.ramp_start // multiple) * multiple
        config = dataclasses.replace(config, optim=dataclasses.replace(optim, ramp_start=start))
    with suppress(ConfigError):
        check(config, gpus)
        return Job(config, gpus)
    return None


def _layouts(config: Config, gpus: int, device: Device) -> Iterator[dict[str, Any]]:
    """All combinations of sizes that divide the GPUs and the layers, as changes for `changed`."""
    model = config.model
    tensors = [size for size in _divisors(device.gpus_per_node) if model.num_attention_heads % size == 0]
    for tensor, stages in itertools.product(tensors, _divisors(model.num_layers)):
        replica = tensor * stages
        if gpus % replica or config.optim.global_batch_size % (gpus // replica):
            continue
        virtuals = [size for size in _divisors(model.num_layers // stages) if stages > 1 and size <= LARGEST_VIRTUAL]
        engines = [("megatron", 1)] + [("deepspeed", stage) for stage in (2, 3) if stages == 1 and gpus > tensor]
        for virtual, micro, recompute, (engine, zero) in itertools.product(
            virtuals or [1], _micro_batches(config, gpus // replica), _recomputations(config), engines
        ):
            yield {
                "parallel.engine": engine,
                "parallel.zero_stage": zero,
                "parallel.tensor_parallel_size": tensor,
                "parallel.sequence_parallel": tensor > 1,
                "parallel.pipeline_parallel_size": stages,
                "parallel.virtual_pipeline_size": virtual,
                "parallel.micro_batch_size": micro,
                "parallel.recompute": recompute,
                "parallel.offload_optimizer": "none",
                "parallel.offload_parameters": "none",
            }


def _micro_batches(config: Config, replicas: int) -> tuple[int, ...]:
    """Micro-batch sizes to try; in stage embed all divisors, since the paper's batches are no powers of two."""
    if config.stage.name != "embed":
        return MICRO_BATCHES
    return tuple(size for size in _divisors(config.optim.global_batch_size // replicas) if size <= LARGEST_PAIRS)


def _recomputations(config: Config) -> tuple[str, ...]:
    """Values of `parallel.recompute` to try; with fused attention, selective recomputation saves nothing."""
    return ("none", "selective", "full") if config.kernels.attention == "unfused" else ("none", "full")


def _overrides(before: Config, job: Job) -> tuple[str, ...]:
    """Command-line overrides that change `before` to the job's configuration."""
    found = []
    for group in ("parallel", "kernels", "optim"):
        old, new = getattr(before, group), getattr(job.config, group)
        for field in dataclasses.fields(new):
            value = getattr(new, field.name)
            if value != getattr(old, field.name):
                found.append(f"{group}.{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return tuple(found)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
