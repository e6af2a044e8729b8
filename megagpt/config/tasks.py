"""The part of the configuration about in-context tasks that evaluate a model during training."""

from dataclasses import dataclass
from typing import Literal

from megagpt.config.bounds import NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class TasksConfig:
    """In-context tasks that evaluate the model during training, as `megagpt evaluate` does.

    Each task with each number of demonstrations is one metric, such as task_lambada_8shot.
    """

    names: tuple[str, ...] = ()
    """Names of tasks and suites, or paths of task files. []: none."""
    shots: tuple[int, ...] = ()
    """Numbers of demonstrations; each task is evaluated with each number. []: the default number of each task."""
    every: NonNegativeInt = 500
    """Steps between these evaluations. The trained model is always evaluated; 0: only the trained model."""
    limit: PositiveInt | None = 200
    """Most examples of each task, taken from the beginning of its data. null: all."""
    data: str | None = None
    """Folder of the data sets; null for tasks that bring their own."""
    protocol: Literal["lm-eval", "gpt3"] = "lm-eval"
    """Method of prompting and scoring: lm-evaluation-harness's, or GPT-3's (arXiv 2005.14165)."""
