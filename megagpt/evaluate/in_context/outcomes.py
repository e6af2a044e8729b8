"""Outcomes of a task and its examples, for both protocols."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def example_ids(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of a task's examples in outcomes: their fields `id` if all are different, else their positions."""
    names = [example.get("id") for example in examples]
    places = None in names or len(set(map(str, names))) < len(names)
    return [str(place if places else name) for place, name in enumerate(names)]


@dataclass(frozen=True)
class ExampleOutcome:
    """One example with the model's answer."""

    id: str
    """Id within the task, the same in every evaluation of the same data; results are paired by it."""
    prompt: str
    """All text before the answer, including demonstrations."""
    shots: int
    """Number of demonstrations in the prompt; fewer than requested if the context is too short."""
    choices: tuple[str, ...]
    """Answers that were compared; empty if the model generated its answer."""
    scores: tuple[float, ...]
    """Scores of the choices, the highest of which is the answer; for a single given answer its log-probability; else
    empty."""
    answer: str
    """The model's answer."""
    target: str
    """The right answer; several are joined by " | "."""
    metrics: dict[str, float]
    """The example's value of each metric, such as {"acc": 1.0}."""
    clean: bool | None = None
    """Whether the example is clean, so was not found in the training data. None if it was not searched."""


@dataclass(frozen=True)
class TaskOutcome:
    """A task with one number of shots."""

    task: str
    """Name of the task."""
    shots: int
    """Number of demonstrations requested for each prompt."""
    metrics: dict[str, float]
    """Metrics over all examples: accuracies and F1 from 0 to 1, BLEU from 0 to 100, perplexities above 1."""
    main_metric: str
    """The metric that judges the task; a key of `metrics`."""
    higher_is_better: bool
    """Whether a higher main metric is better."""
    chance: float | None
    """Expected main metric of random answers; None if not defined."""
    examples: list[ExampleOutcome]
    """Examples in the order of the data."""
    aggregate: dict[str, str] = field(default_factory=dict)
    """{metric: how it is computed from the examples}: "exp(-mean)", "corpus" or "mean", the default."""
    version: str = "1"
    """Version of the task's definition; results of different versions are not comparable."""
    source: dict[str, str] = field(default_factory=dict)
    """{name of a file that was read: SHA-256}."""
    notes: list[str] = field(default_factory=list)
    """Notes for readers, such as "12 of 500 prompts have 43 to 49 shots: no more fit the context"."""
