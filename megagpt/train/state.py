"""Where a run stands: all that the next step depends on besides tensors."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Counters of a run; written into every checkpoint."""

    step: int = 0
    """Steps taken, skipped ones included."""
    samples: int = 0
    """Sequences consumed; the next step starts at this global sample index."""
    tokens: int = 0
    """Tokens consumed; learning rate and batch size are functions of it."""
    skipped_steps: int = 0
    """Steps that changed nothing because the loss or a gradient was not finite."""
    skipped_in_a_row: int = 0
    """How many of those were the latest steps."""
    recent: list[float] = field(default_factory=list)
    """Losses of the latest steps, kept where loss spikes are watched for."""
    left_out: list[list[int]] = field(default_factory=list)
    """Samples that are not trained on since the loss jumped: each from the first up to but without the second."""
    rollbacks: int = 0
    """How often the run has gone back from a spike."""

    best_metric: str | None = None
    """What the best checkpoint is chosen by."""
    best_value: float | None = None
    """Its value at the best step so far; None before the first."""
    best_step: int | None = None
    """The step whose checkpoint is the best."""

    def consider(self, metric: str, value: float, lowest: bool) -> None:
        """Make this step the best if `value` is better than all before; what is not finite never is."""
        if metric != self.best_metric:
            self.best_metric, self.best_value, self.best_step = metric, None, None
        if not math.isfinite(value):
            return
        best = self.best_value
        if best is None or (value < best if lowest else value > best):
            self.best_value, self.best_step = value, self.step

    @property
    def optimizer_step(self) -> int:
        """Updates that the optimizer has made."""
        return self.step - self.skipped_steps

    def to_dict(self) -> dict[str, Any]:
        """The counters as JSON."""
        return asdict(self)
