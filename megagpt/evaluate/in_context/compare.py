"""Two results compared example by example: the same question, once for each model.

A paired test sees much smaller differences than two intervals do, since hard questions are hard for both models.
Metrics that are 0 or 1 get McNemar's exact test, others a bootstrap of the difference over pairs. What cannot be
compared is refused, what may mislead is compared with a warning; both say why.
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
    """Pairs by who was right."""

    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class Difference:
    """A metric of a task, over the examples that both results have."""

    task: str
    shots: int
    metric: str
    main: bool
    """Whether the task is judged by it."""
    higher_is_better: bool | None
    """None where it is not the main metric, of which alone this is known."""
    pairs: int
    first: float
    second: float
    interval: Interval | None
    """Of the second minus the first; None of a single pair."""
    p_value: float
    test: str
    counts: Counts | None
    """None where the metric is not 0 or 1."""

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
        """By itself; of many tests some are by chance."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """What differs between two results."""

    first: str
    second: str
    differences: list[Difference] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """What was not compared, and why."""
    warnings: list[str] = field(default_factory=list)
    """What a reader has to know of what was compared."""


def compare(
    first: Result, second: Result, *, corpus: Mapping[str, CorpusMetric] | None = None, seed: int = 0
) -> Comparison:
    """Compare what two results have in common. corpus: as of `write_results`; seed: of the bootstrap.

    Raises DataError when the files of examples are missing or broken.
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
    """A sentence for each task that has numbers of shots, or is, in one result only."""
    lines = []
    for task in dict.fromkeys(name for side in sides for name, _ in side):
        shots = [sorted(k for name, k in side if name == task) for side in sides]
        if not all(shots):
            lines.append(f"{task} is in {first if shots[0] else second} only")
        elif shots[0] != shots[1]:
            texts = [", ".join(map(str, one)) for one in shots]
            lines.append(
                f"{task} has other numbers of shots: {first} has {texts[0]}, {second} has {texts[1]}; "
                "only the same number is compared"
            )
    return lines


def _compare_task(
    found: Comparison,
    results: tuple[Result, Result],
    tasks: tuple[TaskResult, TaskResult],
    corpus: Mapping[str, CorpusMetric] | None,
    seed: int,
) -> None:
    """Add a task's differences to what was found, or why there are none."""
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
            found.refused.append(f"{name}: {metric} is not known of each example, so it has no test")
        else:
            found.differences.append(one)


def _unpaired(outcomes: Sequence[TaskOutcome], names: tuple[str, str], same_protocol: bool) -> str:
    """Why examples cannot be paired by their ids; empty where they can."""
    for outcome, name in zip(outcomes, names, strict=True):
        if len({example.id for example in outcome.examples}) < len(outcome.examples):
            return f"several examples of {name} have the same id"
    sides = [{example.id: example for example in outcome.examples} for outcome in outcomes]
    common = sides[0].keys() & sides[1].keys()
    if not common:
        return "no example is in both"
    # Two protocols may write one answer differently, such as "True" and "yes".
    other = sum(sides[0][key].target != sides[1][key].target for key in common) if same_protocol else 0
    if other:
        return (
            f"{other:,} of {len(common):,} examples of one id have different right answers: the data are not the same"
        )
    return ""


def _pairs(outcomes: Sequence[TaskOutcome]) -> tuple[list[TaskOutcome], tuple[int, int]]:
    """The outcomes with the examples that both have, in one order, and how many each has alone."""
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
    """What may mislead in the comparison of a task."""
    texts = []
    examples: list[tuple[ExampleOutcome, ExampleOutcome]] = list(
        zip(paired[0].examples, paired[1].examples, strict=True)
    )
    if any(unpaired):
        texts.append(
            f"compared are the {len(examples):,} examples that both have; {names[0]} has {unpaired[0]:,} more, "
            f"{names[1]} has {unpaired[1]:,} more"
        )
    if other := sum(a.prompt != b.prompt for a, b in examples):
        texts.append(f"{other:,} of {len(examples):,} prompts differ, so the difference is not of the models alone")
    files = tasks[0].source.keys() & tasks[1].source.keys()
    if changed := sorted(file for file in files if tasks[0].source[file] != tasks[1].source[file]):
        texts.append(f"the content of {', '.join(changed)} differs")
    if tasks[0].main_metric != tasks[1].main_metric:
        texts.append(
            f"{names[0]} is judged by {tasks[0].main_metric}, {names[1]} by {tasks[1].main_metric}: "
            "compared is what both have"
        )
    return texts


def _difference(
    paired: Sequence[TaskOutcome], metric: str, corpus: Mapping[str, CorpusMetric] | None, seed: int
) -> Difference | None:
    """The difference of a metric over pairs; None where there is no rule to compute it from examples."""
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
"""Columns of `cells`, of which `first` and `second` stand for the results' names."""


def cells(one: Difference) -> list[str]:
    """A difference as text, in the order of HEADS; a star stands at p-values that are significant by themselves."""
    interval = "" if one.interval is None else f"[{one.interval.low:+.4f}, {one.interval.high:+.4f}]"
    p_value = f"{one.p_value:.2g}" if one.p_value < 0.001 else f"{one.p_value:.3f}"
    figures = [f"{one.first:.4f}", f"{one.second:.4f}", f"{one.value:+.4f}", interval]
    return [*figures, p_value + " *" * one.significant, f"{one.pairs:,}"]


def as_text(comparison: Comparison) -> str:
    """The main metrics' differences as lines for a terminal, with everything that was refused or is doubtful."""
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
    # What a terminal would obey instead of showing it is replaced.
    return "\n".join("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines)


def several_tests(count: int) -> str:
    """A sentence about what the star means among so many tests."""
    expected = f"; of {count} tests at that level, {count * SIGNIFICANT:.2g} come out so by chance" if count > 1 else ""
    return f"* p below {SIGNIFICANT}{expected}"
