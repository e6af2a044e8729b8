"""Charts of in-context results: accuracy against shots, training, and model size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megagpt.evaluate.charts import Chart, Series
from megagpt.evaluate.in_context.averages import Averages, Point, averages, is_accuracy
from megagpt.evaluate.in_context.families import families, named, only_family
from megagpt.evaluate.in_context.published import Published, published, sizes
from megagpt.evaluate.in_context.results import Result
from megagpt.evaluate.in_context.summary import TaskResult, count_of_shots
from megagpt.evaluate.runs import quantity

MOST_LINES = 4
"""Largest number of results in a chart against shots; with more, only the newest of each run is shown."""

NEAR = 0.08
"""Smallest difference of accuracies at which the labels of two lines do not overlap."""

AVERAGE = "Average over tasks"


@dataclass
class View:
    """Charts with the same horizontal axis, collapsed ones last, and notes for readers."""

    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_average(self, results: Sequence[Result], draw: "DrawAverage") -> None:
        """Add the chart of the average over tasks, if several tasks can be averaged."""
        found = averages(results)
        if len(found.tasks) > 1:
            self.charts.append(draw(AVERAGE, results, found))
            self.notes += _average_text(found)

    def add_tasks(self, charts: Sequence[Chart], results: Sequence[Result], draw: "DrawAverage") -> None:
        """Add charts of tasks; the charts of a large family are collapsed, and its average is shown instead."""
        family_of, shown, folded = families([chart.title for chart in charts]), [], []
        for chart in charts:
            family = family_of.get(chart.title)
            if family is None:
                shown.append(chart)
                continue
            if family not in [one.fold for one in folded] and len(family_of) < len(charts):
                own = only_family(results, family)
                found = averages(own)
                shown += [draw(f"Average over {family}", own, found)] if found.tasks else []
            folded.append(replace(chart, fold=family))
        self.charts += shown + sorted(folded, key=lambda chart: chart.fold)


DrawAverage = Callable[[str, Sequence[Result], Averages], Chart]
"""Draws the chart of an average: (title, results, averages) -> chart."""


def charts_of_shots(results: Sequence[Result]) -> View:
    """The average and each task against the number of demonstrations, with GPT-3's figures for comparison."""
    shown = list(results) if len(results) <= MOST_LINES else newest_of_runs(results)
    view = View()
    if len(shown) < len(results):
        view.notes.append("Only the newest checkpoint of each run is shown here.")
    view.add_average(shown, _average_of_shots)
    charts = []
    for task, metric in _task_charts(shown):
        lines, few = [], set()
        known = published(task) if metric == "accuracy" else None
        for number, size in enumerate(sizes()):
            if known and (pairs := sorted(known.by_shots(number))):
                few |= {shots for shots, _ in pairs}
                lines.append(_published(f"GPT-3 {size}", pairs, size if number in (0, 7) else "", shots_place, "shots"))
        for result in shown:
            of_result = sorted(_of(result, task, metric), key=lambda one: one.shots)
            lines.append(_line(result.name, [(one.shots, _point(one)) for one in of_result], shots_place))
        ours = {one.shots: str(one.shots) for result in shown for one in _of(result, task, metric)}
        axis = _shots_axis(ours | {number: str(number) for number in few if number not in ours})
        note = "GPT-3 in grey" if known else ""
        charts.append(_chart(task, note, lines, _chance(shown, task, metric), axis, metric == "accuracy", metric))
    view.add_tasks(charts, shown, _average_of_shots)
    return view


def _average_of_shots(title: str, results: Sequence[Result], found: Averages) -> Chart:
    lines = [
        _line(
            result.name, [(found.shots[label], points[number]) for label, points in found.points.items()], shots_place
        )
        for number, result in enumerate(results)
    ]
    ticks = {number: label for label, number in found.shots.items()}
    return _chart(title, _average_note(found), lines, found.chance, _shots_axis(ticks), True)


def charts_of_training(results: Sequence[Result]) -> View:
    """The average and each task against tokens or steps, for runs with several evaluated checkpoints."""
    runs = [run for run in _runs(results) if len({result.checkpoint.get("step") for result in run}) > 1]
    unit = "tokens" if all(result.checkpoint.get("tokens") for run in runs for result in run) else "step"
    groups = {(_run_name(run[0]) if len(runs) > 1 else ""): run for run in runs}
    return _against(groups, unit, _training_axis, "tokens of training" if unit == "tokens" else "step", False)


def charts_of_size(results: Sequence[Result]) -> View:
    """The average and each task against parameters, if models of several sizes were evaluated."""
    newest = [result for result in newest_of_runs(results) if result.checkpoint.get("parameters")]
    if len({result.checkpoint["parameters"] for result in newest}) < 2:
        return View()
    protocols = dict.fromkeys(str(result.about.get("protocol")) for result in newest)
    groups = {
        protocol if len(protocols) > 1 else "": [one for one in newest if str(one.about.get("protocol")) == protocol]
        for protocol in protocols
    }
    return _against(groups, "parameters", _size_axis, "parameters", True)


def _size_axis(lines: Sequence[Series]) -> dict[str, Any]:
    """A logarithmic axis over the range of the lines, with room for labels after them."""
    places = sorted({x for line in lines for x in line.x}) or [1.0]
    low, high = math.log10(places[0]), math.log10(places[-1])
    # Over a small range the ticks are the sizes themselves.
    ticks = [10.0**power for power in range(3, 13)] if high - low > 2 else places
    axis = {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [quantity(tick) for tick in ticks],
        "range": [low - 0.15, high + 0.15 + 0.12 * (high - low)],
    }
    return {"hovermode": "closest", "xaxis": axis}


def _training_axis(lines: Sequence[Series]) -> dict[str, Any]:
    return {"hovermode": "closest", "xaxis": {"tickformat": "~s", "rangemode": "tozero"}}


def newest_of_runs(results: Sequence[Result]) -> list[Result]:
    """The result of the latest step of each run."""
    return [max(run, key=lambda result: result.checkpoint.get("step") or 0) for run in _runs(results)]


def _runs(results: Sequence[Result]) -> list[list[Result]]:
    """Results grouped by run and protocol, each group in order of steps."""
    runs: dict[Any, list[Result]] = {}
    for result in results:
        folder = result.checkpoint.get("folder")
        key = (folder.rpartition("/")[0], result.about.get("protocol")) if folder else result.folder
        runs.setdefault(key, []).append(result)
    return [sorted(run, key=lambda result: result.checkpoint.get("step") or 0) for run in runs.values()]


def _run_name(result: Result) -> str:
    return f"{result.checkpoint.get('run') or result.name} ({result.about.get('protocol')})"


def _against(
    groups: dict[str, list[Result]],
    unit: str,
    axes: Callable[[Sequence[Series]], dict[str, Any]],
    x: str,
    with_published: bool,
) -> View:
    """Charts against the checkpoints' field `unit`, with one line per group of results and number of shots.

    axes: function that makes the horizontal axis for a chart's lines. x: title of the axis.
    """
    view, everything = View(), [result for group in groups.values() for result in group]
    if not everything:
        return view

    def average(title: str, of: Sequence[Result], found: Averages) -> Chart:
        points = {label: dict(zip(names, row, strict=True)) for label, row in found.points.items()}
        lines = [
            _line(_shots_name(label, group), [(one.checkpoint[unit], points[label][id(one)]) for one in of_group])
            for group, of_group in groups.items()
            for label in found.points
        ]
        return _chart(title, _average_note(found), lines, found.chance, axes(lines), True, x=x)

    names = list(map(id, everything))
    view.add_average(everything, average)
    charts = []
    for task, metric in _task_charts(everything):
        lines: list[Series] = []
        known = published(task) if with_published and metric == "accuracy" else None
        lines += _published_by_size(known) if known else []
        for group, of_group in groups.items():
            shots = sorted({one.shots for result in of_group for one in _of(result, task, metric)})
            for number in shots:
                pairs = [
                    (result.checkpoint[unit], _point(one))
                    for result in of_group
                    for one in _of(result, task, metric)
                    if one.shots == number
                ]
                lines.append(_line(_shots_name(str(number), group), pairs))
        note = "GPT-3 in grey" if known else ""
        chance = _chance(everything, task, metric)
        charts.append(_chart(task, note, lines, chance, axes(lines), metric == "accuracy", metric, x))
    view.add_tasks(charts, everything, average)
    return view


def _shots_name(label: str, group: str) -> str:
    return count_of_shots(label) + (f", {group}" if group else "")


def _task_charts(results: Sequence[Result]) -> list[tuple[str, str]]:
    """(task, main metric); the metric is "accuracy" for all fractions of right answers."""
    return list(dict.fromkeys((task.task, _metric(task)) for result in results for task in result.tasks))


def _metric(task: TaskResult) -> str:
    return "accuracy" if is_accuracy(task) else task.main_metric


def _of(result: Result, task: str, metric: str) -> list[TaskResult]:
    return [one for one in result.tasks if one.task == task and _metric(one) == metric]


def _chance(results: Sequence[Result], task: str, metric: str) -> float | None:
    return next((one.chance for result in results for one in _of(result, task, metric) if one.chance is not None), None)


def _point(task: TaskResult) -> Point | None:
    main = task.main
    if main.value is None:
        return None
    interval = main.interval
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Point(main.value, low, high, f"{count_of_shots(task.shots)}, {task.examples:,} examples")


def shots_place(shots: float) -> float:
    """Position of a number of shots on its axis, log2(1 + shots), which is defined for 0."""
    return math.log2(1 + shots)


def _line(name: str, pairs: Sequence[tuple[float, Point | None]], place: Callable[[float], float] = float) -> Series:
    """Our figures as a line with intervals, by ascending x, without missing values."""
    known = sorted(((place(x), point) for x, point in pairs if point is not None), key=lambda pair: pair[0])
    points = [point for _, point in known]
    return Series(
        name,
        [x for x, _ in known],
        [point.value for point in points],
        text=[point.text for point in points],
        low=[point.low for point in points],
        high=[point.high for point in points],
    )


def _published(
    name: str, pairs: Sequence[tuple[int, float]], label: str, place: Callable[[float], float], unit: str
) -> Series:
    xs, ys = [place(x) for x, _ in pairs], [y for _, y in pairs]
    return Series(name, xs, ys, "published", [f"{name}, {x:,} {unit}" for x, _ in pairs], label=label)


def _published_by_size(known: Published) -> list[Series]:
    """GPT-3's lines of zero, one and few shots, with labels at their ends unless labels would overlap."""
    lines, named = [], []
    for setting in ("few", "zero", "one"):
        pairs = known.by_size(setting)
        if pairs:
            apart = all(abs(pairs[-1][1] - value) > NEAR for value in named)
            named += [pairs[-1][1]] * apart
            name = f"GPT-3 {setting}-shot"
            lines.append(_published(name, pairs, setting if apart else "", float, "parameters"))
    return lines


def _shots_axis(ticks: dict[float, str]) -> dict[str, Any]:
    """The axis with its labels; a label is left out if it would overlap with an earlier one."""
    kept: dict[float, str] = {}
    last = max(map(shots_place, ticks), default=1.0)
    for shots, label in ticks.items():
        if all(abs(shots_place(shots) - place) > 0.05 * last for place in kept):
            kept[shots_place(shots)] = label
    axis = {"tickvals": list(kept), "ticktext": list(kept.values()), "range": [-0.06 * last - 0.1, 1.1 * last + 0.2]}
    return {"hovermode": "closest", "xaxis": axis}


def _chart(
    title: str,
    note: str,
    lines: Sequence[Series],
    chance: float | None,
    axes: dict[str, Any],
    accuracy: bool,
    y: str = "accuracy",
    x: str = "examples in the prompt",
) -> Chart:
    """A chart of lines, with a reference line at chance."""
    lines = [line for line in lines if line.x]
    xs = [x for line in lines for x in line.x]
    if chance is not None and xs:
        ends = [min(xs), max(xs)] if min(xs) < max(xs) else [0.9 * min(xs) - 0.1, 1.1 * max(xs) + 0.1]
        lines.append(Series("chance", ends, [chance, chance], "reference"))
    form = {"yaxis": {"tickformat": ".0%"}} if accuracy else {}
    return Chart(title, lines, note, x, y, axes | form, wide=title == AVERAGE)


def _average_note(found: Averages) -> str:
    return f"mean of {len(found.tasks)} tasks"


def _average_text(found: Averages) -> list[str]:
    """Notes about the average."""
    few = " Few is each task's own number of shots above one, drawn at their mean." if "few" in found.shots else ""
    lines = [
        f"The average is the mean of the main metric over {named(found.tasks)}, each task with equal weight; its "
        f"intervals are by the normal approximation.{few}"
    ]
    if found.left_out:
        lines.append(
            f"Not in the average: {named(found.left_out)}. Their main metric is not a fraction of right answers, or "
            "they lack a number of shots in one of the results."
        )
    return lines
