"""The part of the configuration about tasks in context that a run is measured on while it trains."""

from dataclasses import dataclass
from typing import Literal

from megagpt.config.bounds import NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class TasksConfig:
    """Tasks that the model in training is asked, with demonstrations in its context, as `megagpt evaluate` asks them.

    Each task with each number of demonstrations is a metric, such as task_lambada_8shot.
    """

    names: tuple[str, ...] = ()
    """Tasks and suites, or task files. []: none is asked."""
    shots: tuple[int, ...] = ()
    """Numbers of demonstrations; each task is asked with each. []: the number that each task has by itself."""
    every: NonNegativeInt = 500
    """Steps between two times. The trained model is always asked; 0: nothing but the trained model."""
    limit: PositiveInt | None = 200
    """Most examples of each task, from the beginning of its data. null: all."""
    data: str | None = None
    """Folder of the data sets; null for tasks that bring their own."""
    protocol: Literal["lm-eval", "gpt3"] = "lm-eval"
    """Whose way to ask and to score: that of lm-evaluation-harness, or of GPT-3 (arXiv 2005.14165)."""
