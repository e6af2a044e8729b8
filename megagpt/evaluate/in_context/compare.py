"""Compares two results example by example.

A paired test detects much smaller differences than two separate intervals, because hard questions are hard for both
models. Metrics that are 0 or 1 get McNemar's exact test, others a bootstrap of the difference over pairs. Tasks that
cannot be compared are refused; comparisons that may mislead have a warning. Both state the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from megagpt.evaluate.in_context.intervals import (
    RESAMPLES,
    Interval,
    bootstrap,
    bootstrap_p_value,
    is_binary,
    mcnemar_p_value,
    percentile_interval,
)
from megagpt.evaluate.in_context.outcomes import ExampleOutcome, TaskOutcome
from megagpt.evaluate.in_context.results import Result
from megagpt.evaluate.in_context.summary import CORPUS_RESAMPLES, CorpusMetric, TaskResult, count_of_shots, statistic_of

SIGNIFICANT = 0.05
"""p-value below which a difference is called significant."""


@dataclass(frozen=True)
class Counts:
    """Numbers of pairs by which of the two results is right."""

    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class Difference:
    """The difference of one metric of a task, over the examples that both results have."""

    task: str
    shots: int
    metric: str
    main: bool
    """Whether this is the task's main metric."""
    higher_is_better: bool | None
    """Known only for the main metric; None for others."""
    pairs: int
    first: float
    second: float
    interval: Interval | None
    """95% interval of the second minus the first; None for a single pair."""
    p_value: float
    test: str
    counts: Counts | None
    """None if the metric has values other than 0 and 1."""

    @property
    def title(self) -> str:
        """Task, number of shots and metric in words."""
        return f"{self.task}, {count_of_shots(self.shots)}: {self.metric}"

    @property
    def value(self) -> float:
        """The second minus the first."""
        return self.second - self.first

    @property
    def significant(self) -> bool:
        """Whether this single test is significant; of many tests some are significant by chance."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """The differences between two results."""

    first: str
    second: str
    differences: list[Difference] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Sentences: which parts were not compared, and why."""
    warnings: list[str] = field(default_factory=list)
    """Sentences: why a comparison may mislead."""


def compare(
    first: Result, second: Result, *, corpus: Mapping[str, CorpusMetric] | None = None, seed: int = 0
) -> Comparison:
    """Compare the tasks that two results have in common.

    corpus: see `write_results`. seed: for the bootstrap. Raises DataError when a file of examples is missing or broken.
    """
    found = Comparison(first.name, second.name)
    protocols = first.about.get("protocol"), second.about.get("protocol")
    if protocols[0] != protocols[1]:
        found.warnings.append(
            f"the protocols differ: {first.name} has {protocols[0]}, {second.name} has {protocols[1]}; "
            "the differences are of models and protocols together"
        )
    sides = [{(task.task, task.shots): task for task in result.tasks} for result in (first, second)]
    for key in sides[0]:
        if key in sides[1]:
            _compare_task(found, (first, second), (sides[0][key], sides[1][key]), corpus, seed)
    found.refused.extend(_without_partner(first.name, second.name, sides))
    return found


def _without_partner(first: str, second: str, sides: list[dict[tuple[str, int], TaskResult]]) -> list[str]:
    """A sentence for each task, or set of numbers of shots, that only one result has."""
    lines = []
    for task in dict.fromkeys(name for side in sides for name, _ in side):
        shots = [sorted(k for name, k in side if name == task) for side in sides]
        if not all(shots):
            lines.append(f"{task} is in {first if shots[0] else second} only")
        elif shots[0] != shots[1]:
            texts = [", ".join(map(str, one)) for one in shots]
            lines.append(
                f"{task} has different numbers of shots: {first} has {texts[0]}, {second} has {texts[1]}; "
                "only equal numbers are compared"
            )
    return lines


def _compare_task(
    found: Comparison,
    results: tuple[Result, Result],
    tasks: tuple[TaskResult, TaskResult],
    corpus: Mapping[str, CorpusMetric] | None,
    seed: int,
) -> None:
    """Add a task's differences to `found`, or the reason why there are none."""
    name, names = tasks[0].title, (found.first, found.second)
    if tasks[0].version != tasks[1].version:
        found.refused.append(
            f"{name}: the task's definition has version {tasks[0].version} in {names[0]} and {tasks[1].version} in "
            f"{names[1]}: evaluate both with one version"
        )
        return
    outcomes = [result.outcome(task) for result, task in zip(results, tasks, strict=True)]
    same_protocol = results[0].about.get("protocol") == results[1].about.get("protocol")
    if reason := _unpaired(outcomes, names, same_protocol):
        found.refused.append(f"{name}: {reason}")
        return
    paired, unpaired = _pairs(outcomes)
    metrics = [metric for metric in outcomes[0].metrics if metric in outcomes[1].metrics]
    if not metrics:
        texts = [", ".join(outcome.metrics) for outcome in outcomes]
        found.refused.append(f"{name}: no metric is in both: {names[0]} has {texts[0]}, {names[1]} has {texts[1]}")
        return
    found.warnings.extend(f"{name}: {text}" for text in _cautions(tasks, paired, unpaired, names))
    for metric in metrics:
        one = _difference(paired, metric, corpus, seed)
        if one is None:
            found.refused.append(f"{name}: {metric} has no value for each example, so it cannot be tested")
        else:
            found.differences.append(one)


def _unpaired(outcomes: Sequence[TaskOutcome], names: tuple[str, str], same_protocol: bool) -> str:
    """The reason why examples cannot be paired by their ids; empty if they can."""
    for outcome, name in zip(outcomes, names, strict=True):
        if len({example.id for example in outcome.examples}) < len(outcome.examples):
            return f"several examples of {name} have the same id"
    sides = [{example.id: example for example in outcome.examples} for outcome in outcomes]
    common = sides[0].keys() & sides[1].keys()
    if not common:
        return "no example is in both"
    # Two protocols may write the same answer differently, such as "True" and "yes".
    other = sum(sides[0][key].target != sides[1][key].target for key in common) if same_protocol else 0
    if other:
        return f"{other:,} of {len(common):,} examples with the same id have different right answers: the data differ"
    return ""


def _pairs(outcomes: Sequence[TaskOutcome]) -> tuple[list[TaskOutcome], tuple[int, int]]:
    """The outcomes with only their common examples, in the same order; and each outcome's number of other examples."""
    sides = [{example.id: example for example in outcome.examples} for outcome in outcomes]
    common = [key for key in sides[0] if key in sides[1]]
    paired = [
        replace(outcome, examples=[side[key] for key in common]) for outcome, side in zip(outcomes, sides, strict=True)
    ]
    return paired, (len(sides[0]) - len(common), len(sides[1]) - len(common))


def _cautions(
    tasks: tuple[TaskResult, TaskResult],
    paired: Sequence[TaskOutcome],
    unpaired: tuple[int, int],
    names: tuple[str, str],
) -> list[str]:
    """Sentences: why the comparison of a task may mislead."""
    texts = []
    examples: list[tuple[ExampleOutcome, ExampleOutcome]] = list(
        zip(paired[0].examples, paired[1].examples, strict=True)
    )
    if any(unpaired):
        texts.append(
            f"only the {len(examples):,} common examples are compared; {names[0]} has {unpaired[0]:,} more, "
            f"{names[1]} has {unpaired[1]:,} more"
        )
    if other := sum(a.prompt != b.prompt for a, b in examples):
        texts.append(f"{other:,} of {len(examples):,} prompts differ, so the models are not the only difference")
    files = tasks[0].source.keys() & tasks[1].source.keys()
    if changed := sorted(file for file in files if tasks[0].source[file] != tasks[1].source[file]):
        texts.append(f"the content of {', '.join(changed)} differs")
    if tasks[0].main_metric != tasks[1].main_metric:
        texts.append(
            f"the main metric of {names[0]} is {tasks[0].main_metric}, the one of {names[1]} is "
            f"{tasks[1].main_metric}: only common metrics are compared"
        )
    return texts


def _difference(
    paired: Sequence[TaskOutcome], metric: str, corpus: Mapping[str, CorpusMetric] | None, seed: int
) -> Difference | None:
    """The difference of a metric over pairs; None if it cannot be computed from the examples."""
    statistics = [statistic_of(outcome, metric, corpus) for outcome in paired]
    if None in statistics:
        return None
    n, how = len(paired[0].examples), paired[0].aggregate.get(metric, "mean")
    first, second = (float(statistic(np.arange(n)[np.newaxis])[0]) for statistic in statistics)
    if not np.isfinite([first, second]).all():
        return None
    resamples = CORPUS_RESAMPLES if how == "corpus" else RESAMPLES
    figures = bootstrap(lambda rows: statistics[1](rows) - statistics[0](rows), n, seed=seed, resamples=resamples)
    counts = _counts(paired, metric) if how == "mean" else None
    main = metric == paired[0].main_metric
    return Difference(
        task=paired[0].task,
        shots=paired[0].shots,
        metric=metric,
        main=main,
        higher_is_better=paired[0].higher_is_better if main else None,
        pairs=n,
        first=first,
        second=second,
        interval=percentile_interval(figures) if n > 1 else None,
        p_value=mcnemar_p_value(counts.only_first, counts.only_second) if counts else bootstrap_p_value(figures),
        test="exact McNemar" if counts else "paired bootstrap",
        counts=counts,
    )


def _counts(paired: Sequence[TaskOutcome], metric: str) -> Counts | None:
    values = [np.array([example.metrics[metric] for example in outcome.examples]) for outcome in paired]
    if not all(map(is_binary, values)):
        return None
    first, second = (value.astype(bool) for value in values)
    parts = (first & second, first & ~second, ~first & second, ~first & ~second)
    return Counts(*(int(part.sum()) for part in parts))


HEADS = ("first", "second", "difference", "95% interval", "p", "pairs")
"""Columns of `cells`; `first` and `second` are the two results."""


def cells(one: Difference) -> list[str]:
    """A difference as text, in the order of HEADS; a star marks significant p-values (see SIGNIFICANT)."""
    interval = "" if one.interval is None else f"[{one.interval.low:+.4f}, {one.interval.high:+.4f}]"
    p_value = f"{one.p_value:.2g}" if one.p_value < 0.001 else f"{one.p_value:.3f}"
    figures = [f"{one.first:.4f}", f"{one.second:.4f}", f"{one.value:+.4f}", interval]
    return [*figures, p_value + " *" * one.significant, f"{one.pairs:,}"]


def as_text(comparison: Comparison) -> str:
    """The main metrics' differences as lines for a terminal, with the refusals and warnings."""
    mains = [one for one in comparison.differences if one.main]
    rows = [["task", "shots", "metric", *HEADS]]
    rows += [[one.task, str(one.shots), one.metric, *cells(one)] for one in mains]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"first: {comparison.first}", f"second: {comparison.second}"]
    if mains:
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.append(several_tests(len(mains)))
    lines += [f"not compared: {text}" for text in comparison.refused]
    lines += [f"note: {text}" for text in comparison.warnings]
    # Control characters are replaced, so that names cannot control the terminal.
    return "\n".join("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines)


def several_tests(count: int) -> str:
    """A sentence that explains the star, and how many of `count` tests have one by chance."""
    expected = f"; of {count} tests at that level, {count * SIGNIFICANT:.2g} come out so by chance" if count > 1 else ""
    return f"* p below {SIGNIFICANT}{expected}"
