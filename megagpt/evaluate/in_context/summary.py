"""Summarizes a task's examples: metrics with intervals, compared with chance, also for the clean examples only."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megagpt.errors import ConfigError
from megagpt.evaluate.in_context.intervals import (
    RESAMPLES,
    Interval,
    Statistic,
    bootstrap_interval,
    exp_minus_mean_of,
    interval_of_share,
    is_binary,
    mean_of,
)
from megagpt.evaluate.in_context.outcomes import ExampleOutcome, TaskOutcome

CORPUS_RESAMPLES = 1_000
"""Number of bootstrap resamples for metrics that are recomputed for each sample, such as BLEU."""

CorpusMetric = Callable[[Sequence[ExampleOutcome]], Callable[[np.ndarray], float]]
"""Maps examples to a function that computes the metric of a sample, given as indices of examples with repetition."""


@dataclass(frozen=True)
class Measure:
    """A metric over examples, with its interval."""

    value: float | None
    """None if it is not finite."""
    interval: Interval | None = None
    """None for a single example, and if no interval can be computed."""


@dataclass(frozen=True)
class Subset:
    """Metrics of a subset of a task's examples."""

    examples: int
    metrics: dict[str, Measure]


@dataclass(frozen=True)
class TaskResult:
    """A task with one number of shots, without its examples. For fields without a docstring see TaskOutcome."""

    task: str
    shots: int
    version: str
    main_metric: str
    higher_is_better: bool
    chance: float | None
    excludes_chance: bool | None
    """Whether the main metric's interval excludes chance; None if one of the two is missing."""
    examples: int
    """Number of examples."""
    metrics: dict[str, Measure]
    clean: Subset | None
    """Metrics of the examples that were not found in the training data; None if they were not searched."""
    fewest_shots: int
    """Smallest number of demonstrations in a prompt; below `shots` if the context is too short."""
    mean_shots: float
    prompts_sha256: str
    """SHA-256 over the prompts in the order of the data, each preceded by its length in bytes (UTF-8) and a newline."""
    aggregate: dict[str, str]
    source: dict[str, str]
    notes: list[str]

    @property
    def title(self) -> str:
        """Task and number of shots as text."""
        return f"{self.task}, {count_of_shots(self.shots)}"

    @property
    def main(self) -> Measure:
        """The main metric."""
        return self.metrics[self.main_metric]


def count_of_shots(number: int | str) -> str:
    """A number of shots as text: 1 shot, 8 shots, few shots."""
    return f"{number} shot{'s' * (str(number) != '1')}"


def summarize(outcome: TaskOutcome, *, corpus: Mapping[str, CorpusMetric] | None = None, seed: int = 0) -> TaskResult:
    """A task's metrics with their intervals. corpus, seed: see `write_results`."""
    examples, notes = outcome.examples, list(outcome.notes)
    measures, parts = {}, {}
    for name, value in outcome.metrics.items():
        measures[name] = Measure(value if math.isfinite(value) else None)
        statistic = statistic_of(outcome, name, corpus)
        if statistic is None:
            continue
        again = _figure(statistic, np.arange(len(examples)))
        if not math.isclose(again, value, rel_tol=1e-6, abs_tol=1e-9):
            if math.isfinite(value):
                notes.append(f"{name} has no interval: it is {value:.6g}, but {again:.6g} from the examples")
            continue
        parts[name] = statistic
        measures[name] = _measure(outcome, name, statistic, np.arange(len(examples)), seed)
    rows = np.flatnonzero([example.clean is True for example in examples])
    clean = None
    if any(example.clean is not None for example in examples):
        figures = {name: _measure(outcome, name, part, rows, seed) for name, part in parts.items()} if len(rows) else {}
        clean = Subset(len(rows), figures)
    main, shots = measures[outcome.main_metric].interval, [example.shots for example in examples]
    decided = main is not None and outcome.chance is not None
    return TaskResult(
        task=outcome.task,
        shots=outcome.shots,
        version=str(outcome.version),
        main_metric=outcome.main_metric,
        higher_is_better=outcome.higher_is_better,
        chance=outcome.chance,
        excludes_chance=not main.low <= outcome.chance <= main.high if decided else None,
        examples=len(examples),
        metrics=measures,
        clean=clean,
        fewest_shots=min(shots, default=outcome.shots),
        mean_shots=sum(shots) / len(shots) if shots else float(outcome.shots),
        prompts_sha256=prompts_sha256(examples),
        aggregate=dict(outcome.aggregate),
        source=dict(outcome.source),
        notes=notes,
    )


def statistic_of(
    outcome: TaskOutcome, metric: str, corpus: Mapping[str, CorpusMetric] | None = None
) -> Statistic | None:
    """The function that computes a metric for samples of the task's examples; None if it cannot be computed from them.

    Raises ConfigError for an unknown aggregation.
    """
    how, examples = outcome.aggregate.get(metric, "mean"), outcome.examples
    if not examples:
        return None
    if how == "corpus":
        rule = ({"bleu": bleu} | dict(corpus or {})).get(metric)
        if rule is None:
            return None
        of_rows = rule(examples)
        return lambda samples: np.array([of_rows(sample) for sample in samples])
    if how not in ("mean", "exp(-mean)"):
        raise ConfigError(
            f"task {outcome.task}: metric {metric} comes by {how!r}; mean, exp(-mean) and corpus are known"
        )
    if any(metric not in example.metrics for example in examples):
        return None
    values = np.array([example.metrics[metric] for example in examples], float)
    return mean_of(values) if how == "mean" else exp_minus_mean_of(values)


def bleu(examples: Sequence[ExampleOutcome]) -> Callable[[np.ndarray], float]:
    """Corpus BLEU (sacrebleu's defaults) of samples of the examples, from sums of the sentences' counts."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(effective_order=True)  # avoids a warning; only the sentences' counts are used, which do not change
    scores = [scorer.sentence_score(example.answer, example.target.split(" | ")) for example in examples]
    order = len(scores[0].counts)
    counts = np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])

    def of_rows(rows: np.ndarray) -> float:
        total = counts[rows].sum(axis=0).tolist()
        return BLEU.compute_bleu(total[:order], total[order:-2], *total[-2:], smooth_method="exp").score

    return of_rows


def prompts_sha256(examples: Iterable[ExampleOutcome]) -> str:
    """See TaskResult.prompts_sha256."""
    digest = hashlib.sha256()
    for example in examples:
        prompt = example.prompt.encode("utf-8", "surrogatepass")
        digest.update(b"%d\n" % len(prompt) + prompt)
    return digest.hexdigest()


def _measure(outcome: TaskOutcome, metric: str, statistic: Statistic, rows: np.ndarray, seed: int) -> Measure:
    """The metric over the examples in `rows`, with its interval."""
    value = _figure(statistic, rows)
    if not math.isfinite(value):
        return Measure(None)
    how = outcome.aggregate.get(metric, "mean")
    if how == "mean":
        values = np.array([outcome.examples[row].metrics[metric] for row in rows])
        if is_binary(values):
            return Measure(value, interval_of_share(int(values.sum()), len(values)))
    resamples = CORPUS_RESAMPLES if how == "corpus" else RESAMPLES
    of_rows = lambda samples: statistic(rows[samples])  # noqa: E731
    return Measure(value, bootstrap_interval(of_rows, len(rows), seed=seed, resamples=resamples))


def _figure(statistic: Statistic, rows: np.ndarray) -> float:
    return float(statistic(rows[np.newaxis])[0])
