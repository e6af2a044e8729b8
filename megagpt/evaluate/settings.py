"""Settings of evaluations of generated text; the fields are the keys of `megagpt evaluate`."""

import os
from dataclasses import dataclass
from pathlib import Path

from megagpt.errors import ConfigError
from megagpt.evaluate.sandbox import Limits, Sandbox


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Settings that all of them have."""

    task: str
    """What to evaluate on; humaneval, humaneval_infilling, mbpp or edits."""
    data: Path
    """The set's file: problems as published (.jsonl or .json, plain or .gz), or edits of `megagpt data edits`."""
    output: Path
    """Folder for the results."""
    checkpoint: Path | None = None
    """Run folder (its newest checkpoint) or one checkpoint: the model to evaluate."""
    completions: Path | None = None
    """.jsonl of completions to evaluate instead of a model's: {"task_id", "completion"}, or for edits {"response"}, one
    for each."""
    max_new_tokens: int = 512
    """Longest completion, tokens."""
    batch_size: int = 32
    """Completions generated at a time."""
    workers: int = len(os.sched_getaffinity(0))
    """Programs tested at a time."""
    sandbox: Sandbox = "bwrap"
    """bwrap, or none: run programs that nobody has read without protection."""
    timeout: float = Limits.wall_seconds
    """Seconds for a program and its tests."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.completions is None):
            raise ConfigError(
                "give either checkpoint=..., a model to evaluate, or completions=..., a file of its completions"
            )
        for name in ("n", "limit", "max_new_tokens", "workers", "batch_size"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")

    @property
    def limits(self) -> Limits:
        """Resources that a program may use."""
        return Limits(wall_seconds=self.timeout)


@dataclass(frozen=True, kw_only=True)
class CodeEvaluation(Evaluation):
    """Programming problems: pass@k."""

    n: int = 1
    """Completions of every problem."""
    k: tuple[int, ...] = (1,)
    """For which k to estimate pass@k; n must be as large."""
    temperature: float = 0.2
    """Of sampling; 0 is greedy."""
    top_p: float = 0.95
    """Nucleus sampling."""
    seed: int = 0
    """Of sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k is {list(self.k)}; it must be a list of positive numbers")
        if self.completions is None and max(self.k) > self.n:
            raise ConfigError(
                f"pass@{max(self.k)} needs at least {max(self.k)} completions of every problem, not n={self.n}"
            )


@dataclass(frozen=True, kw_only=True)
class EditEvaluation(Evaluation):
    """Edits by instruction: exact match, similarity, and tests where there are any."""

    max_new_tokens: int = 256
    """Longest response, tokens."""
    limit: int | None = None
    """Only so many edits, from the beginning."""
