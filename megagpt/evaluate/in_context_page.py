"""Builds the page of in-context results: accuracy against shots, training and size, with chance and GPT-3's figures."""

from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from megagpt.evaluate.charts import charts_page, figures
from megagpt.evaluate.in_context import compare as comparing
from megagpt.evaluate.in_context.averages import averages
from megagpt.evaluate.in_context.compare import Comparison, compare
from megagpt.evaluate.in_context.families import families, only_family
from megagpt.evaluate.in_context.outcomes import ExampleOutcome
from megagpt.evaluate.in_context.published import published, source
from megagpt.evaluate.in_context.results import Result, read_examples, read_several
from megagpt.evaluate.in_context.summary import Measure, TaskResult, count_of_shots
from megagpt.evaluate.in_context_charts import charts_of_shots, charts_of_size, charts_of_training
from megagpt.evaluate.page import Rows, section, table, tiles
from megagpt.evaluate.runs import flatten
from megagpt.evaluate.visible import defused, marked
from megagpt.train.metrics import replace_file

LOOKED_AT = 100
"""Number of examples of a file in which the page looks for a right and a wrong answer to show."""


def write_in_context_page(folders: Sequence[Path], output: Path | None = None) -> tuple[Path, Comparison | None]:
    """Write the page about one or several results; returns its path and, for exactly two results, their comparison.

    output: by default report.html in the folder of one result, comparison.html next to the first of several. Raises
    DataError for folders without results, ConfigError without plotly or for a folder that is named twice.
    """
    results = read_several(folders)
    compared = compare(*results) if len(results) == 2 else None
    output = output or (
        folders[0] / "report.html" if len(results) == 1 else folders[0].absolute().parent / "comparison.html"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, build_in_context_page(results, compared))
    return output, compared


def build_in_context_page(results: Sequence[Result], compared: Comparison | None = None) -> str:
    """The page's HTML. All text of results is escaped, without characters that change the direction of other text."""
    title = defused(f"In context: {results[0].name if len(results) == 1 else f'{len(results)} results'}")
    head = (
        f'<header><span class="brand">megagpt</span><h1>{escape(title)}</h1><p>{escape(_facts(results))}</p></header>'
    )
    views = [charts_of_shots(results), charts_of_training(results), charts_of_size(results)]
    titles = ["Against the number of examples in the prompt", "Against training", "Against the number of parameters"]
    places, charts, said = "", [], set()
    for name, view in zip(titles, views, strict=True):
        notes = [note for note in view.notes if note not in said]
        places += section(name, figures(view.charts, len(charts)) + _notes(notes)) if view.charts else ""
        charts += view.charts
        said.update(notes)
    body = "".join(
        [
            head,
            _tiles(results),
            places,
            section("Differences", _differences(compared)) if compared else "",
            section("Figures", _figures(results)),
            section("What to know", _task_notes(results)),
            section("Prompts as the model saw them", _prompts(results)),
            section("How it was measured", _about(results)),
        ]
    )
    return charts_page(title, defused(body), charts, ["in_context.css"])


def _facts(results: Sequence[Result]) -> str:
    """The header's facts, which are the same for all results."""
    facts = []
    for key, words in (("protocol", "by {}'s protocol"), ("model", "model {}"), ("run", "run {}"), ("step", "step {}")):
        values = {str(result.checkpoint.get(key, result.about.get(key))) for result in results}
        if len(values) == 1 and values != {"None"}:
            facts.append(words.format(PROTOCOLS.get(*values, *values)))
    return " · ".join(facts)


PROTOCOLS = {"gpt3": "GPT-3", "lm-eval": "lm-eval"}
"""Titles of the protocols."""


def _tiles(results: Sequence[Result]) -> str:
    if len(results) > 1:
        return ""
    (result,) = results
    decided = [task.excludes_chance for task in result.tasks if task.excludes_chance is not None]
    better = sum(
        task.excludes_chance is True and (task.main.value > task.chance) == task.higher_is_better
        for task in result.tasks
    )
    found = averages(results)
    average = [
        (
            f"Average, {count_of_shots(label)}",
            f"{points[0].value:.1%}",
            f"of {len(found.tasks)} tasks" * (len(found.tasks) > 1),
        )
        for label, points in found.points.items()
        if points[0] is not None
    ]
    seconds = (result.about.get("work") or {}).get("seconds")
    names = {task.task for task in result.tasks}
    return tiles(
        ("Tasks", str(len(names)), f"{sum(task.examples for task in result.tasks):,} questions asked"),
        *average[:4],
        ("Better than chance", f"{better} of {len(decided)}" if decided else None, "by their 95% intervals"),
        ("Time", f"{seconds:,.3g} s" if isinstance(seconds, int | float) else None, ""),
    )


def _notes(lines: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def _differences(compared: Comparison) -> str:
    """The table of a comparison, main metrics first, with refusals and warnings."""
    names = [compared.first, compared.second]
    rows = []
    for one in sorted(compared.differences, key=lambda one: not one.main):
        counts = [f"{one.counts.only_first:,}", f"{one.counts.only_second:,}"] if one.counts else ["", ""]
        rows.append((one.task, (one.title, [*comparing.cells(one), *counts, one.test])))
    heads = [escape(name) for name in [*names, *comparing.HEADS[2:]]]
    heads += [f"only {escape(name)} right" for name in names] + ["test"]
    text = f"Differences are {names[1]} minus {names[0]}, over the examples that both have. "
    lines = [text + comparing.several_tests(len(rows))] if rows else []
    lines += [f"Not compared: {reason}." for reason in compared.refused] + [f"{one}." for one in compared.warnings]
    return _folded(rows, "differences", lambda rows: table(rows, heads)) + _notes(lines)


def _folded(parts: Sequence[tuple[str, Any]], kind: str, write: Callable[[list[Any]], str]) -> str:
    """HTML of (task, part) pairs by `write`; parts of a large family come last, collapsed.

    kind: plural name of the parts, for the titles.
    """
    family_of = families(name for name, _ in parts)
    groups: dict[str, list[Any]] = {}
    for name, part in parts:
        groups.setdefault(family_of.get(name, ""), []).append(part)
    return write(groups.pop("", [])) + "".join(
        f"<details><summary>{escape(family)}: {len(of)} {kind}</summary>{write(of)}</details>"
        for family, of in groups.items()
    )


def _figures(results: Sequence[Result]) -> str:
    """A table of all figures, one column per result; large families have their averages, and collapsed tables."""
    keys = dict.fromkeys(
        (task.task, task.shots, metric)
        for result in results
        for task in result.tasks
        for metric in sorted(task.metrics, key=lambda name: name != task.main_metric)
    )
    sides = [{(task.task, task.shots): task for task in result.tasks} for result in results]
    rows: list[tuple[str, tuple[str, list[str]]]] = [("", row) for row in _family_rows(results)]
    for name, shots, metric in keys:
        tasks = [side.get((name, shots)) for side in sides]
        known = next(task for task in tasks if task is not None)
        cells = [_value(task.metrics.get(metric)) if task else "" for task in tasks]
        main = metric == known.main_metric
        if len(results) == 1:
            cells += [_interval(known.metrics[metric]), _chance(known) if main else ""]
            cells += [f"{known.examples:,}", _shots(known), _clean(known, metric)]
        rows.append((name, (f"{known.title}: {metric}", cells)))
    if len(results) > 1:
        heads = [escape(result.name) for result in results]
        return _folded(rows, "figures", lambda rows: table(rows, heads))
    heads = ["value", "95% interval", "chance", "examples", "shots used", "clean examples only"]
    kept = [number for number in range(len(heads)) if number < 5 or any(cells[number] for _, (_, cells) in rows)]
    heads = [heads[number] for number in kept]
    return _folded(
        [(name, (label, [cells[number] for number in kept])) for name, (label, cells) in rows],
        "figures",
        lambda rows: table(rows, heads),
    )


def _family_rows(results: Sequence[Result]) -> Rows:
    """Rows with the average of each large family, by number of shots."""
    rows: Rows = []
    for family in dict.fromkeys(families(task.task for result in results for task in result.tasks).values()):
        found = averages(only_family(results, family))
        for label, points in found.points.items():
            cells = ["not finite" if point is None else f"{point.value:.4g}" for point in points]
            if len(results) == 1 and (point := points[0]):
                chance = "" if found.chance is None else f"{found.chance:.4g}"
                interval = "" if point.low is None else f"[{point.low:.4g}, {point.high:.4g}]"
                cells += [interval, chance, "", "", ""]
            elif len(results) == 1:
                cells += [""] * 5
            rows.append((f"{family}, {count_of_shots(label)}: average of {len(found.tasks)} tasks", cells))
    return rows


def _value(measure: Measure | None) -> str:
    return "" if measure is None else "not finite" if measure.value is None else f"{measure.value:.4g}"


def _interval(measure: Measure) -> str:
    return f"[{measure.interval.low:.4g}, {measure.interval.high:.4g}]" if measure.interval else ""


def _chance(task: TaskResult) -> str:
    if task.chance is None:
        return ""
    if task.excludes_chance is None:
        return f"{task.chance:.4g}"
    side = "above" if task.main.value > task.chance else "below"
    return f"{task.chance:.4g}, {side if task.excludes_chance else 'not excluded'}"


def _shots(task: TaskResult) -> str:
    return (
        str(task.shots) if task.fewest_shots == task.shots else f"{task.mean_shots:.1f}, at least {task.fewest_shots}"
    )


def _clean(task: TaskResult, metric: str) -> str:
    if task.clean is None:
        return ""
    measure = task.clean.metrics.get(metric)
    return f"{_value(measure)} {_interval(measure)} of {task.clean.examples:,}" if measure else "none"


def _task_notes(results: Sequence[Result]) -> str:
    """The different notes of all tasks."""
    lines: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for task in result.tasks:
            for note in task.notes:
                lines.setdefault((task.task, f"{task.title}: {note}"), []).append(result.name)
    texts = [
        (task, text if len(names) == len(results) else f"{text} ({', '.join(names)})")
        for (task, text), names in lines.items()
    ]
    if any(published(task.task) for result in results for task in result.tasks):
        texts.append(("", f"GPT-3's figures are from {source()}. They were measured by GPT-3's protocol."))
    return _folded(texts, "notes", _list)


def _list(texts: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>' if texts else ""


def _prompts(results: Sequence[Result]) -> str:
    """Some prompts of every task and number of shots, collapsed; several versions if the results' prompts differ."""
    seen, parts = set(), []
    asked = {(task.task, task.shots, task.prompts_sha256) for result in results for task in result.tasks}
    versions = Counter(key[:2] for key in asked)
    for result in results:
        for task in result.tasks:
            key = (task.task, task.shots, task.prompts_sha256)
            if key in seen:
                continue
            seen.add(key)
            articles = "".join(_article(task, example) for example in _chosen(result, task))
            of_result = f", {result.name}" if versions[key[:2]] > 1 else ""
            title = f"{escape(task.task)}<small>{count_of_shots(task.shots)}{escape(of_result)}</small>"
            parts.append((task.task, f'<details class="asked"><summary>{title}</summary>{articles}</details>'))
    signs = "↵ is a line feed, · a space that is hard to see, → a tab. Other invisible characters have their numbers."
    return _notes([signs]) + _folded(parts, "prompts", "".join) if parts else ""


def _chosen(result: Result, task: TaskResult) -> list[ExampleOutcome]:
    """One right and one wrong answer if the file's first LOOKED_AT examples have both, else the first two."""
    examples = list(islice(read_examples(result.folder, task.task, task.shots), LOOKED_AT))
    best = [example for example in examples if example.metrics.get(task.main_metric) == 1]
    worst = [example for example in examples if example.metrics.get(task.main_metric) == 0]
    chosen = best[:1] + worst[:1]
    return chosen if len(chosen) == 2 else examples[:2]


def _article(task: TaskResult, example: ExampleOutcome) -> str:
    facts = [f"example {example.id}", count_of_shots(example.shots)]
    facts += [f"{name} {value:.4g}" for name, value in example.metrics.items()]
    if example.clean is not None:
        facts.append("clean" if example.clean else "found in the training data")
    choices = "".join(_choice(example, number) for number in range(len(example.choices)))
    if not choices:
        scores = "".join(f'<td class="score">{score:.4f}</td>' for score in example.scores)
        choices = f'<tr><th scope="row">answer</th><td><code>{marked(example.answer)}</code></td>{scores}</tr>'
        choices += f'<tr><th scope="row">right</th><td><code>{marked(example.target)}</code></td></tr>'
    elif example.target not in example.choices:
        choices += f'<tr><th scope="row">right</th><td><code>{marked(example.target)}</code></td></tr>'
    return (
        f"<article><small>{escape(' · '.join(facts))}</small><pre>{marked(example.prompt)}</pre>"
        f'<table class="choices"><tbody>{choices}</tbody></table></article>'
    )


def _choice(example: ExampleOutcome, number: int) -> str:
    """A table row of a choice: marks (answer, right), text, score."""
    choice = example.choices[number]
    marks = ["answer"] * (choice == example.answer) + ["right"] * (choice == example.target)
    score = f"{example.scores[number]:.4f}" if number < len(example.scores) else ""
    style = ' class="right"' if choice == example.target else ""
    return (
        f'<tr{style}><th scope="row">{", ".join(marks)}</th><td><code>{marked(choice)}</code></td>'
        f'<td class="score">{score}</td></tr>'
    )


def _about(results: Sequence[Result]) -> str:
    """All settings of the results, then hashes and sources of the tasks; collapsed."""
    columns = [{key: value for key, value in flatten(result.about).items() if key != "kind"} for result in results]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [(key, [_setting(column.get(key)) for column in columns]) for key in keys]
    heads = [escape(result.name) for result in results] if len(results) > 1 else []
    facts = f"<details><summary>Settings and versions</summary>{table(rows, heads, 'code')}</details>"
    rows = []
    for result in results:
        for task in result.tasks:
            of_result = f"{result.name}: " if len(results) > 1 else ""
            files = ", ".join(f"{name} {digest}" for name, digest in task.source.items())
            rows.append((f"{of_result}{task.title}", [task.version, task.prompts_sha256, files]))
    heads = ["version", "SHA-256 of the prompts", "files, with their SHA-256"]
    return f"{facts}<details><summary>Tasks</summary>{table(rows, heads, 'code')}</details>"


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
