"""Builds one self-contained HTML page about one or several runs, which makes no network requests."""

import json
import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

from megagpt.evaluate.curves import (
    COMPRESSORS,
    MAX_POINTS,
    PANELS,
    SMOOTHING,
    panel_data,
    smooth,
    task_metrics,
    task_panels,
)
from megagpt.evaluate.page import Rows, build_page, section, table, tiles
from megagpt.evaluate.report_texts import dot, instructions_section, links_section, samples_section
from megagpt.evaluate.runs import Run, number, quantity

NOT_METRICS = ("step", "tokens", "bytes", "fim_cuts")
"""Keys of an evaluation that are not metrics but describe its data."""


def build_report(runs: list[Run], links: Sequence[tuple[str, str]] = ()) -> str:
    """The page's HTML. All text from runs is escaped.

    links: text and address of further pages.
    """
    panels = [data for panel in PANELS if (data := panel_data(panel, runs))] + task_panels(runs)
    page_data = {"runs": [run.name for run in runs], "panels": panels}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    body = "\n".join(
        [
            _header(title, runs),
            links_section(links),
            _controls(runs),
            _figures(panels),
            section("Summary", _facts(runs) if len(runs) == 1 else table(summary_rows(runs), _heads(runs))),
            *(_before_after(run, len(runs) > 1) for run in runs),
            instructions_section(runs),
            samples_section(runs),
            _config(runs),
            section("How it was run", table(_about_rows(runs), _heads(runs), "code")),
        ]
    )
    return build_page(title, body, page_data, style=["report.css"], script="report.js")


def summary_rows(runs: list[Run]) -> Rows:
    """Rows of the main figures; figures that no run has are left out."""
    columns = [_summary(run) for run in runs]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    return [(label, [column.get(label, "") for column in columns]) for label in labels]


def before_after_rows(run: Run) -> Rows:
    """(label, [before, after]) of the metrics that the run measured before its first step and at its end."""
    rows = []
    for key, before in run.before.items():
        after = run.evaluation.get(key)
        if key not in NOT_METRICS and number(before) is not None and number(after) is not None:
            spec = ".1%" if key.endswith("exact_match") else ".4f"
            rows.append((_label(key), [_format(before, spec), _format(after, spec)]))
    return rows


def _label(key: str) -> str:
    """A metric's key as words: "fim_exact_match" becomes "FIM exact match"."""
    words = key.replace("_", " ").capitalize()
    return f"FIM{words.removeprefix('Fim')}" if words.startswith("Fim ") else words


def _summary(run: Run) -> dict[str, str]:
    last, validation = (lines[-1] if lines else {} for lines in (run.train, run.validation))
    loss = smooth([number(line["loss"]) for line in run.train])
    split = run.evaluation.get("split", "held out")
    values = {
        "Steps": _format(last.get("step"), ",.0f"),
        "Tokens": quantity(last.get("tokens")),
        "Training loss, smoothed": _format(next((value for value in reversed(loss) if value is not None), None), ".4f"),
        "Validation loss": _format(validation.get("validation_loss"), ".4f"),
        "Validation perplexity": _format(validation.get("validation_perplexity"), ".2f"),
        "Validation bits per byte": _format(validation.get("validation_bits_per_byte"), ".4f"),
        f"Final loss ({split})": _format(run.evaluation.get("loss"), ".4f"),
        f"Final perplexity ({split})": _format(run.evaluation.get("perplexity"), ".2f"),
        f"Final bits per byte ({split})": _format(run.evaluation.get("bits_per_byte"), ".4f"),
        **{f"Bits per byte of {name}": _format(run.evaluation.get(key), ".4f") for key, name in COMPRESSORS.items()},
        **{f"{task}, {shots}-shot": _last_of_task(run, task, shots) for task, shots in task_metrics(run)},
        "Tokens per second, median": quantity(_median(run, "tokens_per_second")),
        "Model FLOPs utilisation, median": _format(_median(run, "mfu"), ".1%"),
        "Peak memory": _format(_largest(run, "memory_gib"), ".2f", " GiB"),
        "Time training": _duration(_training_seconds(run)),
        "Skipped steps": _format(last.get("skipped_steps"), ",.0f"),
    }
    return {label: value for label, value in values.items() if value}


def _header(title: str, runs: list[Run]) -> str:
    facts = list(dict.fromkeys(fact for run in runs for fact in _header_facts(run)))
    above = ""
    if len(runs) == 1:
        run, values = runs[0], _summary(runs[0])
        split = run.evaluation.get("split", "held out")
        compressors = [
            f"{name} {_format(run.evaluation.get(key), '.2f')}"
            for key, name in COMPRESSORS.items()
            if number(run.evaluation.get(key)) is not None
        ]
        bits = values.get(f"Final bits per byte ({split})") or values.get("Validation bits per byte")
        loss = values.get(f"Final loss ({split})") or values.get("Validation loss")
        perplexity = values.get(f"Final perplexity ({split})") or values.get("Validation perplexity")
        utilisation = values.get("Model FLOPs utilisation, median")
        memory = f"peak memory {values['Peak memory']}" if "Peak memory" in values else ""
        above = tiles(
            ("Held-out bits per byte", bits, " · ".join(compressors)),
            ("Held-out loss", loss, f"perplexity {perplexity}" if perplexity else ""),
            ("Tokens", values.get("Tokens"), f"{values['Steps']} steps" if "Steps" in values else ""),
            ("Tokens per second", values.get("Tokens per second, median"), f"MFU {utilisation}" if utilisation else ""),
            ("Time training", values.get("Time training"), memory),
        )
    subtitle = f"<p>{escape(' · '.join(facts))}</p>" if facts else ""
    return f'<header><span class="brand">megagpt</span><h1>{escape(title)}</h1>{subtitle}</header>{above}'


def _header_facts(run: Run) -> list[str]:
    """The model, its shape and the hardware, if known."""
    config, about = run.config, run.about
    facts = [config.get("model.name")]
    if {"model.num_layers", "model.hidden_size"} <= set(config):
        facts.append(f"{config['model.num_layers']} layers of width {config['model.hidden_size']}")
    if "device" in about:
        facts.append(f"{about['device']}, {about.get('ranks', 1)} rank{'s' * (about.get('ranks', 1) != 1)}")
    return [str(fact) for fact in facts if fact]


def _controls(runs: list[Run]) -> str:
    chips = ""
    if len(runs) > 1:
        chips = "".join(
            f'<button class="chip" data-run="{index}" aria-pressed="true">{dot(index)}{escape(run.name)}</button>'
            for index, run in enumerate(runs)
        )
    return f"""<nav class="controls" aria-label="Plots">
<div class="chips">{chips}</div>
<div class="switch" role="group" aria-label="Horizontal axis">
<button data-axis="tokens" aria-pressed="true">Tokens</button>
<button data-axis="step" aria-pressed="false">Steps</button>
</div></nav>"""


def _figures(panels: list[dict[str, Any]]) -> str:
    figures = []
    for index, panel in enumerate(panels):
        unit = f"<small>{escape(panel['unit'])}</small>" if panel["unit"] else ""
        wide = ' class="wide"' if index == 0 else ""
        caption = f"<figcaption>{escape(panel['title'])}{unit}</figcaption>"
        figures.append(f'<figure{wide}>{caption}<div class="plot" id="plot{index}"></div></figure>')
    notes = [
        f"Faint lines are single steps, full lines an exponential mean over {SMOOTHING:.0%} of the run (less at its "
        "start), dots evaluations during training, diamonds the final one. Drag to zoom, double-click to zoom out."
    ]
    if any(panel["thinned"] for panel in panels):
        notes.append(
            f"Curves of more than {MAX_POINTS:,} points are thinned out to the smallest and the largest value "
            f"in each of {MAX_POINTS // 2:,} intervals."
        )
    return f'<div class="plots">{"".join(figures)}</div><p class="note">{" ".join(notes)}</p>'


def _before_after(run: Run, named: bool) -> str:
    title = f"Before and after: {run.name}" if named else "Before and after"
    return section(title, table(before_after_rows(run), ["before", "after"]))


def _config(runs: list[Run]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    if not keys:
        return ""
    rows = [(key, [_setting(run.config[key]) if key in run.config else "" for run in runs]) for key in keys]
    if len(runs) == 1:
        return section("Configuration", _config_groups(rows))
    different = [row for row in rows if len(set(row[1])) > 1]
    same = [(key, values[:1]) for key, values in rows if len(set(values)) == 1]
    first = table(different, _heads(runs), "code") if different else "<p>The configurations are the same.</p>"
    rest = f"<details><summary>{len(same)} settings that are the same</summary>{_config_groups(same)}</details>"
    return section("What differs in the configuration", first + rest)


def _config_groups(rows: Rows) -> str:
    groups: dict[str, list[str]] = {}
    for key, values in rows:
        group, _, name = key.rpartition(".")
        groups.setdefault(group or "run", []).append(f"<dt>{escape(name)}</dt><dd>{escape(values[0])}</dd>")
    cards = (f"<div><h3>{escape(group)}</h3><dl>{''.join(items)}</dl></div>" for group, items in groups.items())
    return f'<div class="groups">{"".join(cards)}</div>'


def _about_rows(runs: list[Run]) -> Rows:
    columns = []
    for run in runs:
        versions = run.about.get("versions")
        about = {name: run.about[name] for name in ("command", "device", "ranks") if name in run.about}
        columns.append(about | (versions if isinstance(versions, dict) else {}))
    labels = list(dict.fromkeys(label for column in columns for label in column))
    return [(str(label), [str(column.get(label, "")) for column in columns]) for label in labels]


def _heads(runs: list[Run]) -> list[str]:
    """Names of the runs as column heads; none for a single run."""
    return [f"{dot(index)}{escape(run.name)}" for index, run in enumerate(runs)] if len(runs) > 1 else []


def _facts(runs: list[Run]) -> str:
    pairs = (f"<div><dt>{escape(label)}</dt><dd>{escape(cells[0])}</dd></div>" for label, cells in summary_rows(runs))
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _format(value: Any, spec: str, suffix: str = "") -> str:
    value = number(value)
    return "" if value is None else f"{value:{spec}}{suffix}"


def _duration(seconds: float | None) -> str:
    if not seconds:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _values(run: Run, key: str) -> list[float]:
    return [value for line in run.train if (value := number(line.get(key))) is not None]


def _last_of_task(run: Run, task: str, shots: int) -> str:
    values = [line[key] for line in run.tasks if (key := f"task_{task}_{shots}shot") in line]
    return _format(values[-1], ".4f")


def _median(run: Run, key: str) -> float | None:
    return statistics.median(values) if (values := _values(run, key)) else None


def _largest(run: Run, key: str) -> float | None:
    return max(_values(run, key), default=None)


def _training_seconds(run: Run) -> float | None:
    """Seconds of all steps, from the tokens between two lines and their rate, so that unlogged steps count too."""
    seconds, before = 0.0, 0.0
    for line in run.train:
        tokens, rate = number(line.get("tokens")), number(line.get("tokens_per_second"))
        if tokens is not None and rate:
            seconds, before = seconds + (tokens - before) / rate, tokens
    return seconds or None
