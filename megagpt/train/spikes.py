"""Loss spikes: how they are detected, and which samples are left out after going back to a checkpoint.

The remedy is PaLM's (Chowdhery et al., arXiv 2204.02311, section 5.1): continue from a checkpoint before the spike,
without the batches around it. All state is in `TrainState`, so that a resumed run makes the same decisions.
"""

import math
from dataclasses import dataclass
from statistics import median

from megagpt.config.schema import ReliabilityConfig
from megagpt.errors import TrainingDiverged
from megagpt.train.state import TrainState


@dataclass(frozen=True)
class Spike:
    """A step whose loss is far above the losses before it."""

    step: int
    loss: float
    usual: float
    """Median of the losses before, in nats."""
    window: tuple[int, int]
    """Half-open range of the global sample indices to leave out."""


class SpikeGuard:
    """Watches the losses of applied steps; does nothing if `reliability.spike_threshold` is 0."""

    def __init__(self, config: ReliabilityConfig) -> None:
        self.config = config

    def check(self, state: TrainState, first_sample: int, loss: float) -> Spike | None:
        """The spike, if the step that led to `state` has one, else None; its loss is then stored in `state.recent`.

        first_sample: global index of the step's first sample. loss: in nats.
        """
        config = self.config
        if not config.spike_threshold:
            return None
        usual = median(state.recent) if len(state.recent) == config.spike_history else math.inf
        if loss - usual > config.spike_threshold:
            batch_size = state.samples - first_sample
            start = first_sample - config.spike_rewind * batch_size
            return Spike(state.step, loss, usual, (max(start, 0), start + config.spike_skip * batch_size))
        state.recent = [*state.recent, loss][-config.spike_history :]
        return None

    def check_budget(self, state: TrainState, spike: Spike) -> None:
        """Raises TrainingDiverged when the run has already gone back `reliability.max_rollbacks` times."""
        if state.rollbacks >= self.config.max_rollbacks:
            raise TrainingDiverged(
                f"the loss of step {spike.step} is {spike.loss:.4f} where {spike.usual:.4f} is usual, a spike after "
                f"{state.rollbacks} others (reliability.max_rollbacks={self.config.max_rollbacks}). Continue from an "
                f"earlier checkpoint with a lower optim.lr, or look at samples {spike.window[0]} to "
                f"{spike.window[1] - 1}"
            )


def rolled_back(restored: TrainState, state: TrainState, spike: Spike) -> TrainState:
    """The counters after going back: those of the checkpoint, with all windows that the run has left out so far."""
    restored.left_out = [*state.left_out, list(spike.window)]
    restored.rollbacks = state.rollbacks + 1
    return restored


def next_sample(state: TrainState, batch_size: int) -> int:
    """Global index of the next step's first sample: after every window to leave out that the step would overlap."""
    first = state.samples
    for start, stop in sorted(state.left_out):
        if first < stop and first + batch_size > start:
            first = stop
    return first
