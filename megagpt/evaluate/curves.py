"""Selects, smooths and thins out the curves of a report."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megagpt.evaluate.runs import Run, number

MAX_POINTS = 5000
"""Longer curves are thinned out to at most this many points."""

SMOOTHING = 1 / 50
"""Window of the exponential moving average, as a fraction of the run."""

COMPRESSORS = {"gzip_9_bits_per_byte": "gzip -9", "xz_9_bits_per_byte": "xz -9"}


TASK = re.compile(r"task_(.+)_(\d+)shot")
"""Name of an in-context task's metric: (task, number of demonstrations)."""


@dataclass(frozen=True)
class Panel:
    """One chart: a training metric (each step, also smoothed if noisy), a validation metric, or both."""

    title: str
    unit: str
    train: str = ""
    validation: str = ""
    evaluation: str = ""
    """Key of evaluation.json that is drawn as a separate last point."""
    noisy: bool = False
    logarithmic: bool = False
    from_zero: bool = False
    ticks: str = "~g"
    """Format of numbers on the vertical axis, in d3-format's notation."""
    hover: str = ".4~g"
    """Format of numbers in tooltips, in d3-format's notation."""


PANELS = (
    Panel("Loss", "nats per token", train="loss", validation="validation_loss", noisy=True, logarithmic=True),
    Panel("Held-out loss", "nats per token", validation="validation_loss", evaluation="loss"),
    Panel("Held-out bits per byte", "bits", validation="validation_bits_per_byte", evaluation="bits_per_byte"),
    Panel("Held-out responses, scored by a reward model", "", validation="validation_reward"),
    Panel("Accuracy on ranked pairs", "of pairs", train="accuracy", validation="validation_accuracy", noisy=True),
    Panel("Own document first in the batch", "of queries", train="batch_accuracy", noisy=True, from_zero=True),
    Panel("Search: mean reciprocal rank", "", validation="validation_mrr", evaluation="mrr", from_zero=True),
    Panel("Similarity: rank correlation", "", validation="validation_spearman", evaluation="spearman"),
    Panel("Temperature", "", train="temperature"),
    Panel("Score of responses", "", train="score", validation="validation_score", noisy=True),
    Panel("Divergence from the reference", "nats per response", train="kl", validation="validation_kl", noisy=True),
    Panel("Weight of the divergence", "", train="kl_coefficient", from_zero=True),
    Panel("Ratio to the old policy", "", train="ratio", noisy=True),
    Panel("Clipped choices", "of tokens", train="clip_fraction", noisy=True, from_zero=True),
    Panel("Entropy", "nats per token", train="entropy", noisy=True),
    Panel("Variance explained by the critic", "", train="explained_variance", noisy=True),
    Panel(
        "Length of responses", "tokens", train="response_tokens", validation="validation_response_tokens", noisy=True
    ),
    Panel("Responses that end", "of responses", train="eos_rate", validation="validation_eos_rate", from_zero=True),
    Panel("Pretraining loss beside", "nats per token", train="pretraining_loss", noisy=True),
    Panel("Learning rate", "", train="lr", from_zero=True, ticks="~e", hover=".3~e"),
    Panel("Gradient norm", "", train="grad_norm", noisy=True, logarithmic=True),
    Panel(
        "Throughput",
        "tokens per second",
        train="tokens_per_second",
        noisy=True,
        from_zero=True,
        ticks="~s",
        hover=".3~s",
    ),
    Panel("Model FLOPs utilisation", "of peak", train="mfu", noisy=True, from_zero=True, ticks=".0%", hover=".1%"),
    Panel("Peak memory", "GiB", train="memory_gib", from_zero=True),
    Panel("Skipped steps", "since the start", train="skipped_steps", from_zero=True),
)


def smooth(values: Sequence[float | None]) -> list[float | None]:
    """Exponential moving average with window SMOOTHING, shorter at the steep start; None stays None."""
    full = max(1.0, len(values) * SMOOTHING)
    total, weight, seen, smoothed = 0.0, 0.0, 0, []
    for value in values:
        if value is not None:
            keep = 1 - 2 / (min(full, 1 + seen / 10) + 1)
            total, weight, seen = keep * total + value, keep * weight + 1, seen + 1
        smoothed.append(None if value is None else total / weight)
    return smoothed


def thin_out(values: Sequence[float | None], limit: int = MAX_POINTS) -> list[int]:
    """Indices of at most `limit` points that preserve the shape of a curve: the extremes of each bucket."""
    if len(values) <= limit:
        return list(range(len(values)))
    buckets = limit // 2
    kept = set()
    for bucket in range(buckets):
        indices = range(len(values) * bucket // buckets, len(values) * (bucket + 1) // buckets)
        present = [index for index in indices if values[index] is not None] or [indices[0]]
        kept |= {min(present, key=values.__getitem__), max(present, key=values.__getitem__)}
    return sorted(kept)


def panel_data(panel: Panel, runs: list[Run]) -> dict[str, Any] | None:
    """The panel's data for the page's script; None when no run has any."""
    traces = []
    for index, run in enumerate(runs):
        traces += [trace | {"run": index} for trace in _traces(panel, run)]
    if not traces or (panel.train == "skipped_steps" and not any(any(trace["y"]) for trace in traces)):
        return None
    return _page_data(panel, traces, _references(runs) if panel.evaluation == "bits_per_byte" else [])


def task_panels(runs: list[Run]) -> list[dict[str, Any]]:
    """Data of one panel per in-context task, with one curve per number of demonstrations."""
    asked = {names for run in runs for names in task_metrics(run)}
    panels = []
    for task in sorted({task for task, _ in asked}):
        traces = []
        for series, shots in enumerate(sorted(shots for name, shots in asked if name == task)):
            for index, run in enumerate(runs):
                lines = [line for line in run.tasks if f"task_{task}_{shots}shot" in line]
                values = [number(line[f"task_{task}_{shots}shot"]) for line in lines]
                trace = _trace("points", f"{shots}-shot", lines, values)
                traces.append(trace | {"run": index, "series": series})
        traces = [trace for trace in traces if any(value is not None for value in trace["y"])]
        if traces:
            panels.append(_page_data(Panel(f"Task: {task}", "", from_zero=True), traces, []))
    return panels


def task_metrics(run: Run) -> Iterator[tuple[str, int]]:
    """Each different (task, number of demonstrations) among a run's metrics."""
    keys = dict.fromkeys(key for line in run.tasks for key in line)
    return ((found[1], int(found[2])) for key in keys if (found := TASK.fullmatch(key)))


def _page_data(panel: Panel, traces: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": panel.title,
        "unit": panel.unit,
        "logarithmic": panel.logarithmic,
        "fromZero": panel.from_zero,
        "ticks": panel.ticks,
        "hover": panel.hover,
        "traces": traces,
        "references": references,
        "thinned": any(trace["thinned"] for trace in traces),
    }


def _traces(panel: Panel, run: Run) -> list[dict[str, Any]]:
    traces = []
    if panel.train:
        lines = [line for line in run.train if panel.train in line]
        values = [number(line[panel.train]) for line in lines]
        traces.append(_trace("faint" if panel.noisy else "line", "each step", lines, values))
        if panel.noisy:
            traces.append(_trace("line", "training", lines, smooth(values)))
    if panel.validation:
        lines = [line for line in run.validation if panel.validation in line]
        values = [number(line[panel.validation]) for line in lines]
        traces.append(_trace("points", "validation", lines, values))
    value = number(run.evaluation.get(panel.evaluation)) if panel.evaluation else None
    step = number(run.evaluation.get("step"))
    if value is not None and step is not None:
        logged = [line for line in [*run.train, *run.validation] if line["step"] <= step]
        tokens = max((number(line.get("tokens")) or 0 for line in logged), default=0)
        line = {"step": step, "tokens": tokens}
        traces.append(_trace("last", f"final, {run.evaluation.get('split', 'held out')}", [line], [value]))
    return [trace for trace in traces if any(value is not None for value in trace["y"])]


def _trace(style: str, label: str, lines: list[dict[str, Any]], values: list[float | None]) -> dict[str, Any]:
    kept = thin_out(values)
    return {
        "style": style,
        "label": label,
        "step": [lines[index]["step"] for index in kept],
        "tokens": [number(lines[index].get("tokens")) for index in kept],
        "y": [None if values[index] is None else float(f"{values[index]:.6g}") for index in kept],
        "thinned": len(kept) < len(values),
    }


def _references(runs: list[Run]) -> list[dict[str, Any]]:
    """Horizontal lines at the compressors' bits per byte of the held-out text; runs with equal values share a line."""
    lines = {}
    for key, label in COMPRESSORS.items():
        for run in runs:
            if (value := number(run.evaluation.get(key))) is not None:
                lines.setdefault((label, round(value, 4)), []).append(run.name)
    labels = [label for label, _ in lines]
    return [
        {"label": label if labels.count(label) == 1 else f"{label} ({', '.join(names)})", "y": value}
        for (label, value), names in lines.items()
    ]
