"""The state of a run besides tensors; the next step depends on it."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Counters of a run; written into every checkpoint."""

    step: int = 0
    """Number of steps taken, skipped ones included."""
    samples: int = 0
    """Number of samples consumed; the next step starts at this global sample index."""
    tokens: int = 0
    """Number of tokens consumed; learning rate and batch size are functions of it."""
    skipped_steps: int = 0
    """Number of steps without an update, because the loss or a gradient was not finite."""
    skipped_in_a_row: int = 0
    """Number of skipped steps since the last update."""
    recent: list[float] = field(default_factory=list)
    """Losses of the latest steps; empty if spikes are not watched."""
    left_out: list[list[int]] = field(default_factory=list)
    """Half-open ranges of samples that are left out after loss spikes."""
    rollbacks: int = 0
    """Number of spikes after which the run has gone back to a checkpoint."""

    best_metric: str | None = None
    """The metric that chooses the best checkpoint."""
    best_value: float | None = None
    """Value of the metric at the best step so far; None before the first evaluation."""
    best_step: int | None = None
    """The step whose checkpoint is the best."""

    def consider(self, metric: str, value: float, lowest: bool) -> None:
        """Make this step the best if `value` is finite and better than all before. lowest: whether lower is better."""
        if metric != self.best_metric:
            self.best_metric, self.best_value, self.best_step = metric, None, None
        if not math.isfinite(value):
            return
        best = self.best_value
        if best is None or (value < best if lowest else value > best):
            self.best_value, self.best_step = value, self.step

    @property
    def optimizer_step(self) -> int:
        """Number of updates that the optimizer has made."""
        return self.step - self.skipped_steps

    def to_dict(self) -> dict[str, Any]:
        """The counters as values that JSON can hold."""
        return asdict(self)
