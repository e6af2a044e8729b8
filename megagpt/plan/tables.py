"""The plan as tables for a terminal."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from megagpt.plan import embed
from megagpt.plan.assumptions import assumptions, attention_pattern, doubts
from megagpt.plan.devices import GIB
from megagpt.plan.embed import EmbedEstimate
from megagpt.plan.estimate import BOUNDS, DAY_SECONDS, Estimate
from megagpt.plan.job import Job
from megagpt.plan.memory import StageMemory, saved_logits
from megagpt.plan.parameters import stage_parameters, total_parameters
from megagpt.plan.ppo import PPOEstimate, RankMemory
from megagpt.plan.search import Layout

if TYPE_CHECKING:  # importing it at run time would load the engine
    from megagpt.plan.trace import StageTrace


def parts(plan: Estimate) -> list[str]:
    """Names of the parts of a pipeline stage's memory."""
    return [field.name for field in dataclasses.fields(plan.memory[0])]


def summary(plan: Estimate) -> Table:
    """Table of the run, its speed and its cost."""
    job, model, parallel = plan.job, plan.job.config.model, plan.job.config.parallel
    table = Table(title=f"{model.name} on {job.gpus} x {plan.device.name}", show_header=False, title_justify="left")
    for row in (
        ("parameters", f"{total_parameters(model) / 1e9:.3f} billion"),
        *(("WARNING", doubt) for doubt in doubts(plan)),
        ("layout", f"{parallel.engine}: {_layout(job)}, ZeRO {parallel.zero_stage}, recompute {parallel.recompute}"),
        (
            "step",
            f"{job.rows * job.micro_batches * job.data_size} sequences, {job.step_tokens:,} tokens, in"
            f" {job.micro_batches} micro-batches of {job.rows}: {plan.step_seconds:.3f} s",
        ),
        *(_models(plan) if isinstance(plan, PPOEstimate) else ()),
        *(_comparison(plan) if isinstance(plan, EmbedEstimate) else ()),
        ("bound by", plan.bound_by),
        ("pipeline bubble", f"{plan.timeline.bubble:.1%}"),
        ("utilisation", f"MFU {plan.mfu:.1%}, HFU {plan.hfu:.1%}"),
        (
            "tokens",
            f"{plan.tokens_per_second:,.0f} a second, {plan.tokens_per_second * DAY_SECONDS / 1e9:,.2f} billion a day",
        ),
        ("the whole run", _whole_run(plan)),
        (
            "sent a step",
            ", ".join(f"{size / 1e9:,.2f} GB {link}" for link, size in plan.sent.items() if size) or "nothing",
        ),
    ):
        table.add_row(*row)
    return table


def assumed(plan: Estimate) -> Table:
    """Table of the assumptions behind the figures."""
    table = Table(title="what the figures assume", show_header=False, title_justify="left")
    for name, text in assumptions(plan.job, plan.device).items():
        table.add_row(name, text)
    return table


def _whole_run(plan: Estimate) -> str:
    config = plan.job.config
    if plan.days is None:
        return "unknown: optim.train_epochs counts samples in files that do not exist"
    amount = f"{config.optim.train_tokens / 1e9:,.1f} billion tokens"
    if config.stage.name == "ppo":
        amount = f"{config.ppo.episodes:,} episodes"
    elif config.optim.train_epochs is not None:
        amount = f"{config.optim.train_epochs:g} epochs"
    return f"{plan.days:,.1f} days, {plan.gpu_hours:,.0f} GPU-hours for {amount}"


def _layout(job: Job) -> str:
    return f"{job.data_size} replicas x TP {job.tensor_size} x PP {job.pipeline_size} x VPP {job.virtual_size}"


def _models(plan: PPOEstimate) -> Iterator[tuple[str, str]]:
    """Rows for PPO's other models and the phases of an iteration."""
    for name, job in plan.models.items():
        if name != "policy":
            yield name, f"{total_parameters(job.config.model) / 1e9:.3f} billion, {_layout(job)}"
    ppo, batch = plan.job.config.ppo, plan.models["critic"].config.optim.global_batch_size
    steps = ppo.rollout_batch_size * ppo.epochs // batch
    parts = ", ".join(f"{BOUNDS[part]} {steps * plan.parts[part]:.1f} s" for part in ("generation", "scoring"))
    yield (
        "iteration",
        f"{ppo.rollout_batch_size} responses, {steps} steps of {batch}: {parts}, with all responses at full length",
    )


def _comparison(plan: EmbedEstimate) -> Iterator[tuple[str, str]]:
    """Rows for stage embed's texts and passes, and for the memory of the comparison."""
    job = plan.job
    pairs, length = job.config.optim.global_batch_size, job.row_length
    passes = "one pass" if embed.passes(job) == 1 else "two passes, the first without gradients"
    yield "texts", f"{embed.texts(job):,} of {pairs:,} pairs, all of them {length} tokens long, in {passes}"
    sizes = " and ".join(map(str, embed.widths(job)))
    vectors, logits, needed = (
        size / GIB for size in (embed.vector_bytes(job), embed.logit_bytes(job), embed.contrast_bytes(job))
    )
    yield (
        "comparison",
        f"all vectors of {sizes}: {vectors:.2f} GiB, logits of {logits:.2f} GiB at a time; {needed:.2f} GiB with"
        " gradients",
    )


def time(plan: Estimate) -> Table:
    """Table of the parts of a step's time."""
    table = Table("a step's time", "seconds", "share", title_justify="left")
    for part, seconds in plan.parts.items():
        if seconds > 0:
            table.add_row(BOUNDS[part], f"{seconds:.4f}", f"{seconds / plan.step_seconds:.1%}")
    return table


def memory(plan: Estimate) -> Table:
    """Table of GiB per rank by pipeline stage, equal stages in one row; for PPO by rank."""
    if isinstance(plan, PPOEstimate):
        return _memory_of_ranks(plan)
    names = parts(plan)
    table = Table("stage", "parameters", *names, "total", title="GiB a rank", title_justify="left")
    for stages, held in alike(plan):
        sizes = [f"{getattr(held, name) / GIB:.2f}" for name in names]
        parameters = f"{stage_parameters(plan.job, int(stages.split('-')[0])):,}"
        table.add_row(stages, parameters, *sizes, f"{held.total / GIB:.2f}")
    table.caption = f"usable: {plan.device.usable_bytes / GIB:.2f} of {plan.device.memory_gib:g}"
    return table


def _memory_of_ranks(plan: PPOEstimate) -> Table:
    names = [field.name for field in dataclasses.fields(RankMemory)]
    table = Table("ranks", *names, "total", title="GiB a rank", title_justify="left")
    for ranks, held in plan.ranks:
        table.add_row(ranks, *(f"{getattr(held, name) / GIB:.2f}" for name in names), f"{held.total / GIB:.2f}")
    table.caption = (
        "the total has only the largest of generation, scoring and learning; usable:"
        f" {plan.device.usable_bytes / GIB:.2f} of {plan.device.memory_gib:g}"
    )
    return table


def alike(plan: Estimate) -> Iterator[tuple[str, StageMemory]]:
    """("first-last", memory per stage) of neighbouring stages with equal memory."""
    first = 0
    for stage in range(1, len(plan.memory) + 1):
        if stage == len(plan.memory) or plan.memory[stage] != plan.memory[first]:
            yield f"{first}-{stage - 1}" if stage - 1 > first else f"{first}", plan.memory[first]
            first = stage


def trace(plan: Estimate, traced: "list[StageTrace]", name: str) -> Table:
    """Table that compares the plan with a trace of the model `name`.

    Columns: parameters and, for a trained model, GiB of activations in flight and total GiB.
    """
    columns = ["stage", "parameters", "traced", "activations", "traced", "total", "traced"]
    sizes = ("activations", "traced_activations", "total", "traced_total") if learns(name) else ()
    table = Table(*columns[: 3 + len(sizes)], title=f"trace of {name}", title_justify="left")
    for row in compare(plan, traced):
        shown = [f"{row[key] / GIB:.3f}" for key in sizes]
        table.add_row(str(row["stage"]), f"{row['parameters']:,}", f"{row['traced_parameters']:,}", *shown)
    return table


def learns(name: str) -> bool:
    """Whether the model `name` of a run (for example one of PPO's) is trained."""
    return name not in ("rollout", "reference", "reward")


def compare(plan: Estimate, traced: "list[StageTrace]") -> list[dict[str, float]]:
    """Parameters and bytes of each traced stage, by plan and by trace. Messages between stages are not traced."""
    rows = []
    for found in traced:
        held = plan.memory[found.stage]
        logits = saved_logits(plan.job) if found.stage == plan.job.pipeline_size - 1 else 0.0
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
    """Table of a search's result; layouts with doubtful times carry a question mark."""
    columns = ("", "engine", "DP", "TP", "PP", "VPP", "micro", "recompute", "GiB", "step s", "MFU", "days", "bound by")
    table = Table(*columns, title_justify="left", caption_justify="left")
    job = found[0].plan.job
    table.title = (
        f"{job.config.model.name} on {job.gpus} x {found[0].plan.device.name}, {attention_pattern(job.config.model)}"
    )
    doubtful = list(dict.fromkeys(doubt for layout in found for doubt in doubts(layout.plan)))
    table.caption = "\n".join(
        ["Differences of a few percent are below the plan's accuracy.", *(f"(?) {doubt}" for doubt in doubtful)]
    )
    for number, layout in enumerate(found, start=1):
        plan, job = layout.plan, layout.plan.job
        parallel = job.config.parallel
        table.add_row(
            str(number),
            f"{parallel.engine} ZeRO {parallel.zero_stage}{_mark(layout.plan)}",
            str(job.data_size),
            str(job.tensor_size),
            str(job.pipeline_size),
            str(job.virtual_size),
            str(parallel.micro_batch_size),
            parallel.recompute,
            f"{plan.peak_bytes / GIB:.1f}",
            f"{plan.step_seconds:.3f}",
            f"{plan.mfu:.1%}",
            "" if plan.days is None else f"{plan.days:,.1f}",
            plan.bound_by,
        )
    return table


def _mark(plan: Estimate) -> str:
    return " (?)" if doubts(plan) else ""


def refusal(plan: Estimate, changes: list[Layout]) -> str:
    """The message for a plan that does not fit: the excess, and changes that would fit."""
    if isinstance(plan, PPOEstimate):
        ranks, held = max(plan.ranks, key=lambda entry: entry[1].total)
        who = f"ranks {ranks} each need"
    else:
        stage = max(range(len(plan.memory)), key=lambda number: plan.memory[number].total)
        held, who = plan.memory[stage], f"a rank of pipeline stage {stage} needs"
    part = max((field.name for field in dataclasses.fields(held)), key=lambda name: getattr(held, name))
    lines = [
        f"does not fit: {who} {held.total / GIB:.1f} GiB, but {plan.device.name} has "
        f"{plan.device.usable_bytes / GIB:.1f} GiB usable; the largest part is {part}, {getattr(held, part) / GIB:.1f}"
        " GiB"
    ]
    for layout in changes:
        step = layout.plan.step_seconds
        cost = step / plan.step_seconds - 1
        lines.append(
            f"  {' '.join(layout.overrides)}: {layout.plan.peak_bytes / GIB:.1f} GiB, step {step:.3f} s ({cost:+.0%})"
            f"{_mark(layout.plan)}"
        )
    doubtful = dict.fromkeys(doubt for layout in changes for doubt in doubts(layout.plan))
    lines += [f"  (?) {doubt}" for doubt in doubtful]
    if not changes:
        lines.append("  no one or two changes of the layout make it fit: use more GPUs, or try --search")
    return "\n".join(lines)
