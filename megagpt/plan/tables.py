"""The plan as tables for a terminal."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from megagpt.plan.devices import GIB
from megagpt.plan.estimate import BOUNDS, DAY_SECONDS, Estimate
from megagpt.plan.memory import StageMemory, saved_logits
from megagpt.plan.parameters import stage_parameters, total_parameters
from megagpt.plan.search import Layout

if TYPE_CHECKING:  # it imports the engine
    from megagpt.plan.trace import StageTrace

PARTS = [field.name for field in dataclasses.fields(StageMemory)]


def summary(plan: Estimate) -> Table:
    """What the run is, how fast, and what it costs."""
    job, model, parallel = plan.job, plan.job.config.model, plan.job.config.parallel
    table = Table(title=f"{model.name} on {job.gpus} x {plan.device.name}", show_header=False, title_justify="left")
    layout = f"{parallel.engine}: {job.data} replicas x TP {job.tensor} x PP {job.stages} x VPP {job.virtual}"
    for row in (
        ("parameters", f"{total_parameters(model) / 1e9:.3f} billion"),
        ("layout", f"{layout}, ZeRO {parallel.zero_stage}, recompute {parallel.recompute}"),
        (
            "step",
            f"{job.config.optim.global_batch_size} sequences, {job.step_tokens:,} tokens, in {job.micro_batches}"
            f" micro-batches of {parallel.micro_batch_size}: {plan.step_seconds:.3f} s",
        ),
        ("bound by", plan.bound_by),
        ("pipeline bubble", f"{plan.timeline.bubble:.1%}"),
        ("utilisation", f"MFU {plan.mfu:.1%}, HFU {plan.hfu:.1%}"),
        (
            "tokens",
            f"{plan.tokens_per_second:,.0f} a second, {plan.tokens_per_second * DAY_SECONDS / 1e9:,.2f} billion a day",
        ),
        (
            "to the budget",
            f"{plan.days:,.1f} days, {plan.gpu_hours:,.0f} GPU-hours for"
            f" {job.config.optim.train_tokens / 1e9:,.1f} billion tokens",
        ),
        (
            "sent a step",
            ", ".join(f"{size / 1e9:,.2f} GB {link}" for link, size in plan.sent.items() if size) or "nothing",
        ),
    ):
        table.add_row(*row)
    return table


def time(plan: Estimate) -> Table:
    """Where a step's time goes."""
    table = Table("a step's time", "seconds", "share", title_justify="left")
    for part, seconds in plan.parts.items():
        if seconds > 0:
            table.add_row(BOUNDS[part], f"{seconds:.4f}", f"{seconds / plan.step_seconds:.1%}")
    return table


def memory(plan: Estimate) -> Table:
    """GiB by stage, stages that hold the same together."""
    table = Table("stage", "parameters", *PARTS, "total", title="GiB a rank", title_justify="left")
    for stages, held in alike(plan):
        parts = [f"{getattr(held, part) / GIB:.2f}" for part in PARTS]
        parameters = f"{stage_parameters(plan.job, int(stages.split('-')[0])):,}"
        table.add_row(stages, parameters, *parts, f"{held.total / GIB:.2f}")
    table.caption = f"usable: {plan.device.usable_bytes / GIB:.2f} of {plan.device.memory_gib:g}"
    return table


def alike(plan: Estimate) -> Iterator[tuple[str, StageMemory]]:
    """Runs of neighbouring stages that hold the same, as "first-last", and what each holds."""
    first = 0
    for stage in range(1, len(plan.memory) + 1):
        if stage == len(plan.memory) or plan.memory[stage] != plan.memory[first]:
            yield f"{first}-{stage - 1}" if stage - 1 > first else f"{first}", plan.memory[first]
            first = stage


def trace(plan: Estimate, traced: "list[StageTrace]") -> Table:
    """Arithmetic beside trace: parameters, GiB of activations in flight, and GiB in all."""
    columns = ("stage", "parameters", "traced", "activations", "traced", "total", "traced")
    table = Table(*columns, title="trace", title_justify="left")
    for row in compare(plan, traced):
        sizes = [f"{row[key] / GIB:.3f}" for key in ("activations", "traced_activations", "total", "traced_total")]
        table.add_row(str(row["stage"]), f"{row['parameters']:,}", f"{row['traced_parameters']:,}", *sizes)
    return table


def compare(plan: Estimate, traced: "list[StageTrace]") -> list[dict[str, float]]:
    """What the arithmetic and the trace say of each traced stage; bytes. Messages between stages are not traced."""
    rows = []
    for found in traced:
        held = plan.memory[found.stage]
        logits = saved_logits(plan.job) if found.stage == plan.job.stages - 1 else 0.0
        activations = found.activation_bytes(plan.job.in_flight(found.stage))
        rows.append(
            {
                "stage": found.stage,
                "parameters": stage_parameters(plan.job, found.stage),
                "traced_parameters": found.parameters,
                "activations": held.activations + logits,
                "traced_activations": activations,
                "total": held.total,
                "traced_total": held.weights + held.gradients + held.optimizer + activations + found.working_bytes,
            }
        )
    return rows


def layouts(found: list[Layout]) -> Table:
    """A search's result."""
    table = Table(
        "", "engine", "DP", "TP", "PP", "VPP", "micro", "recompute", "GiB", "step s", "MFU", "days", "bound by"
    )
    for number, layout in enumerate(found, start=1):
        plan, job = layout.plan, layout.plan.job
        parallel = job.config.parallel
        engine = f"{parallel.engine} ZeRO {parallel.zero_stage}"
        sizes = (job.data, job.tensor, job.stages, job.virtual, parallel.micro_batch_size)
        times = (f"{plan.peak_bytes / GIB:.1f}", f"{plan.step_seconds:.3f}", f"{plan.mfu:.1%}", f"{plan.days:,.1f}")
        table.add_row(str(number), engine, *map(str, sizes), parallel.recompute, *times, plan.bound_by)
    return table


def refusal(plan: Estimate, changes: list[Layout]) -> str:
    """What is over, and what would fit."""
    stage = max(range(len(plan.memory)), key=lambda number: plan.memory[number].total)
    held = plan.memory[stage]
    part = max(PARTS, key=lambda name: getattr(held, name))
    lines = [
        f"does not fit: a rank of stage {stage} needs {held.total / GIB:.1f} GiB, but {plan.device.name} has "
        f"{plan.device.usable_bytes / GIB:.1f} usable; most are {part}, {getattr(held, part) / GIB:.1f} GiB"
    ]
    for layout in changes:
        step = layout.plan.step_seconds
        cost = step / plan.step_seconds - 1
        lines.append(
            f"  {' '.join(layout.overrides)}: {layout.plan.peak_bytes / GIB:.1f} GiB, step {step:.3f} s ({cost:+.0%})"
        )
    if not changes:
        lines.append("  no one or two changes of its layout fit: take more GPUs, or see --search")
    return "\n".join(lines)
