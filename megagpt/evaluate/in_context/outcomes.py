"""What became of the examples of a task in context, whichever protocol asked them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def example_ids(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the examples of a task are called in outcomes: by their fields `id` if these differ, else by their place."""
    names = [example.get("id") for example in examples]
    places = None in names or len(set(map(str, names))) < len(names)
    return [str(place if places else name) for place, name in enumerate(names)]


@dataclass(frozen=True)
class ExampleOutcome:
    """One example as the model saw it."""

    id: str
    """Of the example within its task, the same in every evaluation of the same data: results are paired by it."""
    prompt: str
    """All the text before the answer, demonstrations included."""
    shots: int
    """Demonstrations in the prompt: fewer than asked for where the context is too short."""
    choices: tuple[str, ...]
    """Answers that were compared; empty where the model wrote its own."""
    scores: tuple[float, ...]
    """Of the choices, by which the answer was taken; of a given answer its log-probability; else empty."""
    answer: str
    """What the model answered."""
    target: str
    """The right answer; of several, those joined by " | "."""
    metrics: dict[str, float]
    """This example's part of each metric, such as {"acc": 1.0}."""
    clean: bool | None = None
    """Whether the example is in the clean subset: it was not found in the training data. None where nobody looked."""


@dataclass(frozen=True)
class TaskOutcome:
    """A task with one number of shots."""

    task: str
    """Name."""
    shots: int
    """Demonstrations asked for in each prompt."""
    metrics: dict[str, float]
    """Over all examples: accuracies and the like from 0 to 1, BLEU from 0 to 100, perplexities above 1."""
    main_metric: str
    """By which the task is judged; a name in `metrics`."""
    higher_is_better: bool
    """Whether more of the main metric is better."""
    chance: float | None
    """What answering at random gives of the main metric; None where that is not defined."""
    examples: list[ExampleOutcome]
    """In the order of the data."""
    aggregate: dict[str, str] = field(default_factory=dict)
    """How a metric comes from those of the examples: "mean" (where it is not named), "exp(-mean)", "corpus"."""
    version: str = "1"
    """Of the task's definition: results of two versions do not compare."""
    source: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file that was read, by name."""
    notes: list[str] = field(default_factory=list)
    """What a reader has to know, such as "12 of 500 prompts have 43 to 49 shots: no more fit the context"."""
